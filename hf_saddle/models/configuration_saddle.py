"""What the Saddle configs have in common: per-layer widths and branch sizes, and the checks that guard them."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils.versions import require_version

from .growable import SKIP_UNITS
from .json_files import read_json
from .shapes import MAX_LAYERS, check_layers, check_size, check_skip_sizes, is_index


# The range this code was tested with; code that was uploaded with a model meets whatever version its reader has.
TRANSFORMERS_RANGE = "transformers>=5.18,<6"
require_version(TRANSFORMERS_RANGE.split(",")[0], "Growable models need per-layer configs.")

DTYPES = ("float16", "bfloat16", "float32", "float64")

# A model of more of them is corrupt or hostile, see `shapes.py`.
MAX_PARAMETERS = 2**35


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of an `image_size` or `patch_size`, which is one number where both are the same."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


_SIZE_FIELDS = ("hidden_size", "num_attention_heads", "intermediate_size", "num_channels", "encoder_stride")
_OPTIONAL_SIZE_FIELDS = ("head_dim", "pooler_output_size")
_SIDE_FIELDS = ("image_size", "patch_size")
_ACTIVATION_FIELDS = ("hidden_act", "pooler_act")
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


def _check_field(field: str, value: Any) -> None:
    if field in _SIZE_FIELDS or (field in _OPTIONAL_SIZE_FIELDS and value is not None):
        check_size(field, value)
    elif field == "num_hidden_layers":
        check_size(field, value, high=MAX_LAYERS)
    elif field == "num_labels" and value is not None:
        check_size(field, value, low=0)
    elif field in _SIDE_FIELDS:
        sides = value if isinstance(value, (list, tuple)) else (value, value)
        if len(sides) != 2:
            raise ValueError(f"`{field}` must be one integer or two (height and width), got {value!r}.")
        for side in sides:
            check_size(field, side)
    elif field in _ACTIVATION_FIELDS and not (isinstance(value, str) and value in ACT2FN):
        raise ValueError(f"`{field}` must be the name of an activation of transformers, got {value!r}.")
    elif field in _PROBABILITY_FIELDS and not (_is_number(value) and 0 <= value <= 1):
        raise ValueError(f"`{field}` must be a number in [0, 1], got {value!r}.")
    elif field == "drop_path_rate" and not (_is_number(value) and 0 <= value < 1):
        raise ValueError(f"`drop_path_rate` must be a number in [0, 1), got {value!r}.")
    elif field in _SCALE_FIELDS and not (_is_number(value) and 0 <= value < math.inf):
        raise ValueError(f"`{field}` must be a number that is not negative, got {value!r}.")
    elif field == "skip_unit" and value not in SKIP_UNITS:
        raise ValueError(f"`skip_unit` must be one of {', '.join(SKIP_UNITS)}, got {value!r}.")
    elif field in ("dtype", "torch_dtype") and not (value is None or _dtype_name(value) in DTYPES):
        raise ValueError(f"`{field}` must be one of {', '.join(DTYPES)}, got {value!r}.")
    elif field == "auto_map" and not (value is None or isinstance(value, Mapping)):
        raise ValueError(f"`auto_map` must map names of Auto classes to code, got {value!r}.")
    elif field in ("id2label", "label2id"):
        _check_labels(field, value)
    elif field == "skip_sizes":
        check_skip_sizes(field, value)
    elif field == "attention_scaling" and not (value is None or (isinstance(value, float) and 0 < value < math.inf)):
        raise ValueError(f"`attention_scaling` must be a positive float, got {value!r}.")


def _dtype_name(value: Any) -> str:
    return value if isinstance(value, str) else str(value).removeprefix("torch.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class SaddleConfig(PreTrainedConfig):
    """
    Fields and checks that every growable vision transformer's config shares.

    The shapes of layer `i` are read as `config.per_layer_config[i].intermediate_size` (width) and
    `config.per_layer_config[i].skip_sizes` (depth). Every assignment is checked and raises a `ValueError` that names
    the field; assign whole values, since a list that is changed in place is not seen.
    """

    skip_unit: str = "gain"
    skip_sizes: dict[str, list[int]] | None = None
    head_dim: int | None = None
    attention_scaling: float | None = None
    drop_path_rate: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        # Before transformers makes a name for every label.
        _check_field("num_labels", kwargs.get("num_labels"))
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
        self._check_parameter_number()

    def __setattr__(self, key: str, value: Any) -> None:
        _check_field(key, value)
        try:
            super().__setattr__(key, value)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"`{key}`: {error}") from error

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; the dictionary has to be of this class's model type."""
        found = config_dict.get("model_type")
        if found != cls.model_type:
            raise ValueError(
                f"`model_type` is {found!r}, but {cls.__name__} reads {cls.model_type!r}. Load the folder with the "
                "class that wrote it; a stock DeiT or ViT becomes growable through `from_stock` of a Saddle model."
            )
        for field in config_dict:
            if callable(getattr(cls, field, None)):
                raise ValueError(f"`{field}` of a config is a method of {cls.__name__}, not a field.")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        values: dict[str, Any] = cls._decode_special_floats(read_json(json_file, "The config"))
        return values

    def __eq__(self, other: object) -> bool:
        # The generated comparison reads every field of the global config, which raises once layers differ. Where a
        # config was read from is not part of it.
        if type(self) is not type(other):
            return False
        return bool(self.to_dict() | {"_name_or_path": ""} == other.to_dict() | {"_name_or_path": ""})

    @property
    def per_layer_config(self) -> Any:
        return super().per_layer_config

    @per_layer_config.setter
    def per_layer_config(self, value: Mapping[Any, Mapping[str, Any]] | None) -> None:
        if value is not None:
            check_layers("per_layer_config", value, self.num_hidden_layers)
        PreTrainedConfig.per_layer_config.fset(self, value)

    def _check_parameter_number(self) -> None:
        """Refuse a model that could not be meant: a lower bound of its parameters, from the config alone."""
        attention_width = self.num_attention_heads * self.head_dim
        total = 0
        for layer in range(self.num_hidden_layers):
            shapes = self.per_layer_config[layer]
            total += self.hidden_size * (4 * attention_width + 2 * shapes.intermediate_size)
            for linear, widths in (shapes.skip_sizes or {}).items():
                fan_in = {"mlp.fc2": shapes.intermediate_size, "attention.o_proj": attention_width}
                total += sum(widths) * fan_in.get(linear, self.hidden_size)
            if total > MAX_PARAMETERS:
                break
        patch = sides(self.patch_size)
        positions = math.prod(image // side for image, side in zip(sides(self.image_size), patch, strict=True))
        if positions == 0:
            raise ValueError(f"`patch_size` {self.patch_size} is larger than `image_size` {self.image_size}.")
        total += self.hidden_size * (positions + self.num_channels * math.prod(patch) + self.num_labels)
        total += self.hidden_size * (self.pooler_output_size or 0)
        if total > MAX_PARAMETERS:
            raise ValueError(
                f"The config asks for more than {MAX_PARAMETERS:.1e} parameters. Check `hidden_size`, "
                "`num_hidden_layers`, `intermediate_size`, `head_dim`, `image_size`, `skip_sizes` and "
                "`per_layer_config`."
            )


__all__ = ["SaddleConfig", "sides"]
