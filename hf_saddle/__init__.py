"""Vision transformers that grow while they train, where the curvature of the loss asks for depth or width."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .models import (
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleDeiTModel,
    SaddleViTConfig,
    SaddleViTForImageClassification,
    SaddleViTModel,
)


__version__ = "0.1.0"

AutoConfig.register("saddle_deit", SaddleDeiTConfig)
AutoConfig.register("saddle_vit", SaddleViTConfig)
AutoModel.register(SaddleDeiTConfig, SaddleDeiTModel)
AutoModel.register(SaddleViTConfig, SaddleViTModel)
AutoModelForImageClassification.register(SaddleDeiTConfig, SaddleDeiTForImageClassification)
AutoModelForImageClassification.register(SaddleViTConfig, SaddleViTForImageClassification)

__all__ = [
    "SaddleDeiTConfig",
    "SaddleDeiTForImageClassification",
    "SaddleDeiTForImageClassificationWithTeacher",
    "SaddleDeiTModel",
    "SaddleViTConfig",
    "SaddleViTForImageClassification",
    "SaddleViTModel",
    "__version__",
]
