"""Multiply-accumulates of a forward pass, and at how many positions each layer acts: counted, not estimated."""

import inspect
import json
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES

from ..models.modeling_saddle import GrowablePreTrainedModel


# Length of the sequence of tokens that a sample of a language model is, or what the model can take if that is less.
TOKENS = 128
_LIMITS = ("max_position_embeddings", "n_positions", "max_target_positions")
# Sides of the image where a config does not say them, as those of convolutional models.
IMAGE_SIZE = 224


def count_macs(model: GrowablePreTrainedModel) -> int:
    """
    Multiply-accumulates of the forward pass of one sample: half of what `torch.utils.flop_counter` counts, that is
    linear layers, attention products and convolutions.

    A sample is an image of the config's size (224 where it says none), a sequence of 128 tokens (on both sides of an
    encoder-decoder), or as much sound as an encoder of sound takes. A model of the same config is run on the meta
    device, so that nothing is computed, and once for each config; without its head where that depends on values.
    """
    return _of_model(model)[0]


def count_positions(model: GrowablePreTrainedModel) -> dict[str, int]:
    """
    At how many positions of a sample the growable layers of a model act, by path in the base model: tokens, or places
    of an image. Those that the forward pass does not reach, as of cross-attention without an encoder, have none.
    """
    return _of_model(model)[1]


def _of_model(model: GrowablePreTrainedModel) -> tuple[int, dict[str, int]]:
    # mypy takes the hash of the instances for that of the class.
    return _count(type(model), model.config.to_json_string(use_diff=False))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _count(model_class: type[GrowablePreTrainedModel], fields: str) -> tuple[int, dict[str, int]]:
    config = model_class.config_class.from_dict(json.loads(fields))
    with torch.device("meta"), torch.no_grad():
        model = model_class(config).eval()
        # Else models look for padding and for packed sequences among tokens, which have no values here.
        model.config.pad_token_id = None
        if "past_key_values" in inspect.signature(model.base_model.forward).parameters:
            model.config.use_cache = True
        sample = sample_of(model)
        try:
            return _forward(model, model, sample)
        except RuntimeError:
            # A head that looks at values, as that of T5 for sequences, which it takes at their last token.
            return _forward(model, model.base_model, sample)


def _forward(model: GrowablePreTrainedModel, part: nn.Module, sample: dict[str, Tensor]) -> tuple[int, dict[str, int]]:
    """Multiply-accumulates of a forward pass of a part of a model, and positions of the layers in it."""
    positions: dict[str, int] = {}

    def note(root: str, neurons: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
        positions[root] += output.numel() // neurons

    hooks = []
    for site in model.growable_linears():
        if not site.nested:
            positions[site.root] = 0
            hooks.append(site.module.register_forward_hook(partial(note, site.root, site.module.neurons)))
    try:
        with FlopCounterMode(display=False) as counter:
            part(**sample)
    finally:
        for hook in hooks:
            hook.remove()
    return int(counter.get_total_flops()) // 2, positions


def sample_of(model: GrowablePreTrainedModel) -> dict[str, Tensor]:
    """The inputs of one sample, without values that mean anything, on the device that is the default."""
    fields, main = model.config.to_dict(), model.main_input_name
    if main == "pixel_values":
        size = fields.get("image_size", IMAGE_SIZE)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return {main: torch.empty(1, fields["num_channels"], *sides)}
    tokens = torch.zeros(1, min(TOKENS, *(fields.get(name, TOKENS) for name in _LIMITS)), dtype=torch.int64)
    if main == "input_features":
        # The encoder of Whisper halves the number of frames.
        sample = {main: torch.empty(1, fields["num_mel_bins"], 2 * fields["max_source_positions"])}
    else:
        choices = model.stock_class.__name__ in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values()
        sample = {main: tokens[:, None] if choices else tokens}
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        sample["decoder_input_ids"] = tokens
    return sample
