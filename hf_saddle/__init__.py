"""Vision transformers that grow while they train, where the curvature of the loss asks for depth or width."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .curvature import CurvatureReport, analyze_curvature
from .growth import (
    GrowthConfig,
    GrowthEvent,
    GrowthHistory,
    GrowthPlan,
    LayerGrowth,
    grow_,
    merge_pairs_,
    plan_growth,
)
from .models import (
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleDeiTModel,
    SaddleViTConfig,
    SaddleViTForImageClassification,
    SaddleViTModel,
)
from .training import (
    GrowthCallback,
    GrowthTrainer,
    growth_event_,
    probe_batches,
    register_growth_checkpointing,
)


__version__ = "0.1.0"

AutoConfig.register("saddle_deit", SaddleDeiTConfig)
AutoConfig.register("saddle_vit", SaddleViTConfig)
AutoModel.register(SaddleDeiTConfig, SaddleDeiTModel)
AutoModel.register(SaddleViTConfig, SaddleViTModel)
AutoModelForImageClassification.register(
    SaddleDeiTConfig, (SaddleDeiTForImageClassification, SaddleDeiTForImageClassificationWithTeacher)
)
AutoModelForImageClassification.register(SaddleViTConfig, SaddleViTForImageClassification)

__all__ = [
    "CurvatureReport",
    "GrowthCallback",
    "GrowthConfig",
    "GrowthEvent",
    "GrowthHistory",
    "GrowthPlan",
    "GrowthTrainer",
    "LayerGrowth",
    "SaddleDeiTConfig",
    "SaddleDeiTForImageClassification",
    "SaddleDeiTForImageClassificationWithTeacher",
    "SaddleDeiTModel",
    "SaddleViTConfig",
    "SaddleViTForImageClassification",
    "SaddleViTModel",
    "__version__",
    "analyze_curvature",
    "grow_",
    "growth_event_",
    "merge_pairs_",
    "plan_growth",
    "probe_batches",
    "register_growth_checkpointing",
]
