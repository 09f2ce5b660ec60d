"""Growable models of many architectures: this flat folder is what travels to the Hub with a model."""

from typing import TYPE_CHECKING, Any

from . import configuration_saddle, modeling_saddle
from .configuration_saddle import SaddleConfig, config_class
from .families import FAMILIES
from .growable import Growable, GrowableConv1D, GrowableConv2d, GrowableLinear, PairedLinear, SkipBranch
from .injection import make_growable_
from .modeling_saddle import GrowablePreTrainedModel, growable, model_class
from .vision import SaddleDeiTConfig, SaddleViTConfig


if TYPE_CHECKING:
    SaddleDeiTForImageClassification: type[GrowablePreTrainedModel]
    SaddleDeiTForImageClassificationWithTeacher: type[GrowablePreTrainedModel]
    SaddleDeiTModel: type[GrowablePreTrainedModel]
    SaddleViTForImageClassification: type[GrowablePreTrainedModel]
    SaddleViTModel: type[GrowablePreTrainedModel]

__all__ = [
    "FAMILIES",
    "Growable",
    "GrowableConv1D",
    "GrowableConv2d",
    "GrowableLinear",
    "GrowablePreTrainedModel",
    "PairedLinear",
    "SaddleConfig",
    "SaddleDeiTConfig",
    "SaddleDeiTForImageClassification",
    "SaddleDeiTForImageClassificationWithTeacher",
    "SaddleDeiTModel",
    "SaddleViTConfig",
    "SaddleViTForImageClassification",
    "SaddleViTModel",
    "SkipBranch",
    "config_class",
    "growable",
    "make_growable_",
    "model_class",
]


if not TYPE_CHECKING:  # type checkers would take every misspelt name for known

    def __getattr__(name: str) -> Any:
        # Every class of every family, as `SaddleLlamaForCausalLM`.
        source = configuration_saddle if name.endswith("Config") else modeling_saddle
        if name.startswith("Saddle"):
            return getattr(source, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
