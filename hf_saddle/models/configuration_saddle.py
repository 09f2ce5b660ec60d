"""Growable configs: those of stock with the sizes of what grew, by path, and the checks that guard them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils.versions import require_version

from .config_fields import SHAPE_FIELDS, check_field
from .families import FAMILIES, family_of, unknown_class
from .json_files import read_json
from .shape_checks import check_paths


# The range this code was tested with; code that was uploaded with a model meets whatever version its reader has.
TRANSFORMERS_RANGE = "transformers>=5.18,<6"
require_version(TRANSFORMERS_RANGE.split(",")[0], "Growable models need strict configs.")

# Activations that branches do not take from the model: they have no curvature almost everywhere, or parameters.
UNSUITED = ("leaky_relu", "linear", "prelu", "relu", "relu6", "xielu")

# The activation of the first layer in the `per_layer_config` of the files of grown models: stock classes, which would
# build them without their branches, raise when they read what differs between layers.
REFUSAL = "this model grew: load it with hf_saddle, or with trust_remote_code=True"


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of an `image_size` or `patch_size`, which is one number where both are the same."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


# The types that transformers asks configs for by their stock names, where its pipelines and `generate` do something of
# their own for the models. Files have the type of the class.
_ASKED_FOR = ("saddle_whisper",)

_first_uses: list[Callable[[str], None]] = []
_used: set[str] = set()


def on_first_use(call: Callable[[str], None]) -> None:
    """Let a function be called with the model type of a family before its first growable config is made."""
    _first_uses.append(call)


class SaddleConfig(PreTrainedConfig):
    """
    Fields and checks that every growable config has beside those of stock.

    Every assignment is checked and raises a `ValueError` that names the field; assign whole values, since a dictionary
    that is changed in place is not seen.

    Args:
        widths (`dict[str, int]`, *optional*):
            Hidden neurons that differ in number from those of stock, by the path in the base model of the first layer
            that they are the rows of: `{"layers.0.mlp.fc1": 130}`.
        skip_sizes (`dict[str, list[int]]`, *optional*):
            Depth: for the path of a layer the widths of its nested skip branches, outermost first:
            `{"layers.0.mlp.fc1": [4, 2]}`.
        heads (`dict[str, int]`, *optional*):
            Attention heads, or key-value heads where these serve groups of queries, that differ in number from those
            of stock, by the path of the attention module: `{"layers.0.attention": 5}`.
        skip_unit (`str`, *optional*, defaults to `"gain"`):
            Kind of the branches' units: `"gain"`, `"residual_pair"` or `"residual"` (merged pairs).
        skip_activation (`str`, *optional*):
            Activation of the branches' units, a name in transformers' `ACT2FN`; by default that of the model, or
            `"gelu"` where that is piecewise linear.
    """

    widths: dict[str, int] | None = None
    skip_sizes: dict[str, list[int]] | None = None
    heads: dict[str, int] | None = None
    skip_unit: str = "gain"
    skip_activation: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model_type not in _used:
            _used.add(self.model_type)
            for call in _first_uses:
                call(self.model_type)
        # Before transformers makes a name for every label.
        check_field("num_labels", kwargs.get("num_labels"))
        if is_refusal(kwargs.get("per_layer_config")):
            kwargs = {
                key: value for key, value in kwargs.items() if key not in ("per_layer_config", "num_hidden_layers")
            }
        super().__post_init__(**kwargs)
        if self.skip_activation is None:
            own = getattr(self, family_of(self.model_type).activation)
            self.skip_activation = own if own in ACT2FN and own not in UNSUITED else "gelu"
        if type(self).model_type in _ASKED_FOR:
            super().__setattr__("model_type", type(self).model_type.removeprefix("saddle_"))

    def __setattr__(self, key: str, value: Any) -> None:
        check_field(key, value)
        if key in SHAPE_FIELDS:
            check_paths(self, key, value)
        try:
            super().__setattr__(key, value)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"`{key}`: {error}") from error

    @property
    def per_layer_config(self) -> Any:
        return super().per_layer_config

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        if value is not None:
            raise ValueError(
                f"A {type(self).__name__} has no `per_layer_config`: the shapes of single layers are `widths`, "
                "`skip_sizes` and `heads`, by path."
            )

    def stock(self) -> Any:
        """The stock config of the model as it was before it grew."""
        # Classes of a single family have the fields of stock too.
        added = (vars(kind) for kind in type(self).__mro__ if issubclass(kind, SaddleConfig))
        own = {field for body in added if not body.get("model_type") for field in body.get("__annotations__", ())}
        derived = {"model_type", "architectures", "transformers_version", "auto_map"}
        fields = {key: value for key, value in self.to_dict().items() if key not in own | derived}
        return CONFIG_MAPPING[self.model_type.removeprefix("saddle_")](**fields)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; the dictionary has to be of this class's model type."""
        found = config_dict.get("model_type")
        if found != cls.model_type:
            raise ValueError(
                f"`model_type` is {found!r}, but {cls.__name__} reads {cls.model_type!r}. Load the folder with the "
                "class that wrote it; a stock model becomes growable through `from_stock` of a Saddle model."
            )
        for field in config_dict:
            if callable(getattr(cls, field, None)):
                raise ValueError(f"`{field}` of a config is a method of {cls.__name__}, not a field.")
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """As in transformers; of a grown model with an entry at which stock classes fail, see `REFUSAL`."""
        values: dict[str, Any] = super().to_diff_dict()
        if not self.widths and not self.skip_sizes and not self.heads:
            return values
        own = {field.name for field in fields(cast(Any, self))}
        counted = "num_hidden_layers" in own | set(self.attribute_map)
        activation = family_of(self.model_type).activation
        first: dict[str, Any] = {activation: REFUSAL}
        # DINOv2 does not read its activation where neurons are gated.
        first |= {"hidden_size": self.hidden_size + 1} if "hidden_size" in own else {}
        # `Trainer` reads the file as a plain `PreTrainedConfig`, which wants to know what other layers have.
        common = {field: getattr(self, field) for field in first}
        common |= {"num_hidden_layers": self.num_hidden_layers if counted else 1}
        return values | common | {"per_layer_config": {"0": first}}

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        values: dict[str, Any] = cls._decode_special_floats(read_json(json_file, "The config"))
        return values

    def __eq__(self, other: object) -> bool:
        # Where a config was read from is not part of it.
        if type(self) is not type(other):
            return False
        return bool(self.to_dict() | {"_name_or_path": ""} == other.to_dict() | {"_name_or_path": ""})


def is_refusal(layers: Any) -> bool:
    """Whether a `per_layer_config` is the one that the files of grown models have."""
    return isinstance(layers, Mapping) and any(
        isinstance(layer, Mapping) and REFUSAL in layer.values() for layer in layers.values()
    )


@cache
def config_class(model_type: str) -> type[SaddleConfig]:
    """
    The growable config class of a stock model type.

    Raises:
        ValueError: If there is no description of its family.
    """
    family_of(model_type)
    stock = CONFIG_MAPPING[model_type]
    if model_type in ("deit", "vit"):
        from .vision import SaddleDeiTConfig, SaddleViTConfig  # which build upon this module

        return SaddleDeiTConfig if model_type == "deit" else SaddleViTConfig
    name = f"Saddle{stock.__name__}"
    body = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": f"Configuration of growable models: the fields of [`~transformers.{stock.__name__}`] and those of\n"
        "    [`SaddleConfig`].",
        "model_type": f"saddle_{model_type}",
        "__eq__": SaddleConfig.__eq__,
    }
    # The defaults that every config has come with `SaddleConfig`; those of the family go before them.
    own = {item.name: item for item in fields(cast(Any, stock))}
    general = [own[item.name] for item in fields(SaddleConfig) if item.name in own]
    particular = [item for item in general if item.default != getattr(SaddleConfig, item.name, item.default)]
    body["__annotations__"] = {item.name: item.type for item in particular}
    made: Any = type(name, (SaddleConfig, stock), body | {item.name: item.default for item in particular})
    made.register_for_auto_class()
    return made  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    for model_type in FAMILIES:
        if name == f"Saddle{CONFIG_MAPPING_NAMES[model_type]}":
            return config_class(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{unknown_class(name)}")
