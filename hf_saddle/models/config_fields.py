"""What single fields of any growable config may hold."""

import sys
from collections.abc import Mapping
from typing import Any

from transformers.activations import ACT2FN

from .families import FAMILIES
from .growable import SKIP_UNITS
from .shape_checks import MAX_LAYERS, check_shapes, check_size, is_index


DTYPES = ("float16", "bfloat16", "float32", "float64")

# A model of more of them is corrupt or hostile, see `shapes.py`.
MAX_PARAMETERS = 2**35
MAX_VOCABULARY = 2**24
MAX_RATIO = 2**10

LAYER_FIELDS = sorted({field for family in FAMILIES.values() for field in family.counts} - {"depths"})
_SIZE_FIELDS = (
    "d_ff",
    "d_kv",
    "d_model",
    "decoder_ffn_dim",
    "dim",
    "embed_dim",
    "embedding_size",
    "encoder_ffn_dim",
    "encoder_stride",
    "hidden_dim",
    "hidden_size",
    "intermediate_size",
    "n_embd",
    "n_heads",
    "num_attention_heads",
    "num_channels",
)
_OPTIONAL_SIZE_FIELDS = ("head_dim", "n_inner", "pooler_output_size")
_SIDE_FIELDS = ("image_size", "patch_size")
_ACTIVATION_FIELDS = {family.activation for family in FAMILIES.values()} | {"pooler_act", "skip_activation"}
SHAPE_FIELDS = ("widths", "skip_sizes", "heads")
_PROBABILITY_FIELDS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_SCALE_FIELDS = ("initializer_range", "layer_norm_eps")


def _check_labels(field: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise ValueError(f"`{field}` must relate whole numbers and texts, got {value!r}.")
    items = [(index, label) for label, index in value.items()] if field == "label2id" else list(value.items())
    if not all(is_index(index) and isinstance(label, str) for index, label in items):
        raise ValueError(f"`{field}` must relate whole numbers and texts, which {len(value)} entries of it do not.")


def check_field(field: str, value: Any) -> None:
    """Raise a `ValueError` that names the field if no config of any family may have this value in it."""
    if field in _SIZE_FIELDS or (field in _OPTIONAL_SIZE_FIELDS and value is not None):
        check_size(field, value)
    elif field in LAYER_FIELDS and value is not None:
        check_size(field, value, high=MAX_LAYERS)
    elif field == "depths" and isinstance(value, (list, tuple)):
        for number in value:
            check_size(field, number, high=MAX_LAYERS)
    elif field == "mlp_ratio" and not (is_number(value) and 0 < value <= MAX_RATIO):
        raise ValueError(f"`{field}` must be a number in (0, {MAX_RATIO}], got {value!r}.")
    elif field == "vocab_size":
        check_size(field, value, high=MAX_VOCABULARY)
    elif field == "num_labels" and value is not None:
        check_size(field, value, low=0)
    elif field in _SIDE_FIELDS:
        sides = value if isinstance(value, (list, tuple)) else (value, value)
        if len(sides) != 2:
            raise ValueError(f"`{field}` must be one integer or two (height and width), got {value!r}.")
        for side in sides:
            check_size(field, side)
    elif field in _ACTIVATION_FIELDS and not (isinstance(value, str) and value in ACT2FN):
        if field != "skip_activation" or value is not None:
            raise ValueError(f"`{field}` must be the name of an activation of transformers, got {value!r}.")
    elif field in _PROBABILITY_FIELDS and not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"`{field}` must be a number in [0, 1], got {value!r}.")
    elif field in _SCALE_FIELDS and not (is_number(value) and value >= 0):
        raise ValueError(f"`{field}` must be a number that is not negative, got {value!r}.")
    elif field == "skip_unit" and value not in SKIP_UNITS:
        raise ValueError(f"`skip_unit` must be one of {', '.join(SKIP_UNITS)}, got {value!r}.")
    elif field in ("dtype", "torch_dtype") and not (value is None or str(value).removeprefix("torch.") in DTYPES):
        raise ValueError(f"`{field}` must be one of {', '.join(DTYPES)}, got {value!r}.")
    elif field == "auto_map" and not (value is None or isinstance(value, Mapping)):
        raise ValueError(f"`auto_map` must map names of Auto classes to code, got {value!r}.")
    elif field in ("id2label", "label2id"):
        _check_labels(field, value)
    elif field in SHAPE_FIELDS:
        check_shapes(field, value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, as JSON needs it; booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
