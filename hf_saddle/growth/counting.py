"""The size of a model: parameters, multiply-accumulates and positions of its layers; counted, not estimated."""

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES

from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.restacking import twin_of


# Length of the sequence of tokens that a sample of a language model is, or what the model can take if that is less.
TOKENS = 128
_LIMITS = ("max_position_embeddings", "n_positions", "max_target_positions")
# Sides of the image where a config does not say them, as those of convolutional models.
IMAGE_SIZE = 224
# What was counted, by class and config, of at most so many.
_KNOWN: dict[tuple[type, str], tuple[int, dict[str, int]]] = {}
_MOST = 64


def count_parameters(model: GrowablePreTrainedModel) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: GrowablePreTrainedModel) -> int:
    """
    Multiply-accumulates of the forward pass of one sample: half of what `torch.utils.flop_counter` counts, that is
    linear layers, attention products and convolutions.

    A sample is an image of the config's size (224 where it says none), a sequence of 128 tokens (on both sides of an
    encoder-decoder), or as much sound as an encoder of sound takes. A model of the same config is run on the meta
    device, so that nothing is computed, and once for each config; without its head where that depends on values.
    """
    return _counted(model)[0]


def count_positions(model: GrowablePreTrainedModel) -> dict[str, int]:
    """
    At how many positions of a sample the growable layers of a model act, by path in the base model: tokens, or places
    of an image. Those that the forward pass does not reach, as of cross-attention without an encoder, have none.
    """
    return _counted(model)[1]


def count_layer_macs(model: GrowablePreTrainedModel, positions: Mapping[str, int]) -> int:
    """The part of a model's multiply-accumulates that its growable layers have, which act at some positions."""
    return sum(site.module.weight.numel() * positions[site.root] for site in model.growable_linears())


def _counted(model: GrowablePreTrainedModel) -> tuple[int, dict[str, int]]:
    """Multiply-accumulates and positions of a model, which follow from its class and config."""
    key = type(model), model.config.to_json_string(use_diff=False)
    if key not in _KNOWN:
        if len(_KNOWN) == _MOST:
            _KNOWN.clear()
        config = copy.deepcopy(model.config)
        config._attn_implementation = None  # that of the model may not run on meta
        twin = twin_of(model, config).eval()
        # Else models look for padding and for packed sequences among tokens, which have no values here.
        twin.config.pad_token_id = None
        if "past_key_values" in inspect.signature(twin.base_model.forward).parameters:
            twin.config.use_cache = True
        with torch.device("meta"), torch.no_grad():
            sample = sample_of(twin)
            try:
                _KNOWN[key] = _forward(twin, twin, sample)
            except RuntimeError:
                # A head that looks at values, as that of T5 for sequences, which it takes at their last token.
                _KNOWN[key] = _forward(twin, twin.base_model, sample)
    return _KNOWN[key]


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
