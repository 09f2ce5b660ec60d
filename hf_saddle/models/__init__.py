"""Growable DeiT and ViT: this flat folder is what travels to the Hub with a model."""

from .configuration_saddle_deit import SaddleDeiTConfig
from .configuration_saddle_vit import SaddleViTConfig
from .growable import GrowableLinear, GrowableMLP, PairedLinear, SkipBranch
from .modeling_saddle import GrowablePreTrainedModel
from .modeling_saddle_deit import (
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleDeiTModel,
    SaddleDeiTPreTrainedModel,
)
from .modeling_saddle_vit import SaddleViTForImageClassification, SaddleViTModel, SaddleViTPreTrainedModel


__all__ = [
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
]
