"""Growable DeiT and ViT: this flat folder is what travels to the Hub with a model."""

from .configuration_saddle_deit import SaddleDeiTConfig
from .configuration_saddle_vit import SaddleViTConfig
from .growable import (
    Growable,
    GrowableConv1D,
    GrowableConv2d,
    GrowableLinear,
    GrowableMLP,
    PairedLinear,
    SkipBranch,
    make_growable_,
)
from .modeling_saddle import GrowablePreTrainedModel
from .modeling_saddle_deit import (
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleDeiTModel,
    SaddleDeiTPreTrainedModel,
)
from .modeling_saddle_vit import SaddleViTForImageClassification, SaddleViTModel, SaddleViTPreTrainedModel


# Saved models carry this folder's code, so that `trust_remote_code=True` loads them where hf_saddle is not installed.
for _class in (SaddleDeiTConfig, SaddleViTConfig):
    _class.register_for_auto_class()
for _class in (SaddleDeiTModel, SaddleViTModel):
    _class.register_for_auto_class("AutoModel")
for _class in (
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleViTForImageClassification,
):
    _class.register_for_auto_class("AutoModelForImageClassification")

__all__ = [
    "Growable",
    "GrowableConv1D",
    "GrowableConv2d",
    "GrowableLinear",
    "GrowableMLP",
    "GrowablePreTrainedModel",
    "PairedLinear",
    "SaddleDeiTConfig",
    "SaddleDeiTForImageClassification",
    "SaddleDeiTForImageClassificationWithTeacher",
    "SaddleDeiTModel",
    "SaddleDeiTPreTrainedModel",
    "SaddleViTConfig",
    "SaddleViTForImageClassification",
    "SaddleViTModel",
    "SaddleViTPreTrainedModel",
    "SkipBranch",
    "make_growable_",
]
