"""Models that grew in width only become stock ones: zeros make every layer as wide as the widest."""

import copy
import math
from dataclasses import fields
from typing import Any

import torch
from transformers import PreTrainedModel

from ...models.families import blocks_in, family_of
from ...models.heads import heads_of
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.parameters import take_dtypes_
from ...models.shapes import widths_of


_RATIO = "mlp_ratio"  # the field of configs that say how wide layers are as a multiple of their inputs


@torch.no_grad()
def to_stock(model: GrowablePreTrainedModel) -> PreTrainedModel:
    """
    The stock model that computes the same, and that runs where nothing of this package is.

    Stock configs have one width, and one number of heads, for many layers: those that have less are filled up with
    neurons, or heads, whose weights in and out are zero. `stock.num_parameters() - model.num_parameters()` of its
    parameters are padding.

    Args:
        model ([`GrowablePreTrainedModel`]): A model that has grown in width, or not at all. It is left as it is.

    Returns:
        `PreTrainedModel`: A model of `model.stock_class`, with weights of its own.

    Raises:
        ValueError: If the model has branches, or widths or heads that no config of the stock class asks for.
    """
    model.check_linears()
    branches = [site.path for site in model.growable_linears() if site.module.skip is not None]
    if branches:
        raise ValueError(
            f"The model has grown in depth at {branches[0]}: a {model.stock_class.__name__} has no branches, and no "
            "other weights of it compute the same. Load the growable model where it is needed, with "
            "`trust_remote_code=True` and without this package, or export it (`hf-saddle export`)."
        )
    family = model.config.model_type.removeprefix("saddle_")
    if family in ("deit", "vit"):
        own: Any = model.config
        if own.head_dim * own.num_attention_heads != own.hidden_size or own.attention_scaling is not None:
            raise ValueError("The model's attention has a `head_dim` or `attention_scaling` that no stock class has.")
    kind: Any = model.stock_class
    stock = kind._from_config(
        _wide_config(model), dtype=model.dtype, attn_implementation=model.config._attn_implementation
    ).to(model.device)
    weights = model.state_dict()
    take_dtypes_(stock, weights)
    state = stock.state_dict()
    for name, tensor in weights.items():
        padded = torch.zeros_like(state[name])
        padded[tuple(slice(size) for size in tensor.shape)] = tensor
        state[name] = padded
    stock.load_state_dict(state)
    if stock.can_generate():
        stock.generation_config = copy.deepcopy(model.generation_config)
    made: PreTrainedModel = stock.train(model.training)
    return made


def _wide_config(model: GrowablePreTrainedModel) -> Any:
    """The stock config with the narrowest layers that have room for the neurons of a model."""
    config, needed = model.config.stock(), model.shapes().widths
    _widen_heads_(model, config)
    found = widths_of(config)
    if all(found[root] == width for root, width in needed.items()):
        return config
    family, blocks = family_of(model.config.model_type), list(blocks_in(model.base_model, model.config))
    fields_of = dict(zip(family.paths, family.widths, strict=True)) if family.widths else {}
    groups: dict[str, list[tuple[int, int]]] = {}  # field -> neurons and inputs of each of its layers
    for site in model.growable_linears():
        if site.neurons is not None and fields_of:
            field, neurons = fields_of[blocks[site.block][1].path], site.module.neurons
            groups.setdefault(field, []).append((neurons, site.module.weight.numel() // neurons))
    for field, sizes in groups.items():
        if field != _RATIO:
            setattr(config, field, max(neurons for neurons, _ in sizes))
            continue
        ratio = max(neurons / inputs for neurons, inputs in sizes)
        whole = {item.name: item.type for item in fields(config)}[field] is int
        # Stock classes round down, and must not end one below.
        setattr(config, field, math.ceil(ratio) if whole else math.nextafter(ratio, math.inf))
        # Gated neurons are fewer than their ratio says.
        while whole and _narrow(config, needed):
            setattr(config, field, getattr(config, field) + 1)
    narrow = _narrow(config, needed)
    if narrow:
        raise ValueError(
            f"The model has {needed[narrow]} neurons at {narrow}, and a {model.stock_class.__name__} always has "
            f"{found[narrow]}: no field of its config says how many, so that no stock model computes the same. Load "
            "the growable model where it is needed, with `trust_remote_code=True` and without this package."
        )
    return config


def _widen_heads_(model: GrowablePreTrainedModel, config: Any) -> None:
    """Let a stock config have room for the heads of a model, where heads are as many as its fields say."""
    grown, kinds = model.shapes().heads, family_of(model.config.model_type).heads
    if not grown or isinstance(kinds, str):
        return
    fields = kinds[0].fields
    path, number = max(grown.items(), key=lambda item: item[1])
    if not fields:
        raise ValueError(
            f"The model has {number} heads at {path}, and the heads of a {model.stock_class.__name__} always have as "
            "many channels together as a token: no field of its config says otherwise, so that no stock model "
            "computes the same. Load the growable model where it is needed, with `trust_remote_code=True` and without "
            "this package."
        )
    most = max(heads_of(model.base_model).values())
    config.head_dim = next(model.attentions()).channels
    keys, queries = getattr(config, fields[0]), getattr(config, fields[-1])
    # Some stock classes want as many queries as divide the width of a token.
    fits = [n for n in range(most, config.hidden_size + 1) if config.hidden_size % (n * queries // keys) == 0]
    for field, each in zip(fields, (1, queries // keys), strict=False):
        setattr(config, field, each * (fits or [most])[0])


def _narrow(config: Any, needed: dict[str, int]) -> str | None:
    """A layer that would have too few neurons."""
    found = widths_of(config)
    return next((root for root, width in needed.items() if found[root] < width), None)


__all__ = ["to_stock"]
