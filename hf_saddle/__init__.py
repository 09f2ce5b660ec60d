"""Transformers that grow while they train, where the curvature of the loss asks for depth or width."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import models
from .models import SaddleDeiTConfig, SaddleViTConfig, growable
from .registration import register
from .version import __version__


if TYPE_CHECKING:
    from .curvature import CurvatureReport, analyze_curvature
    from .growth import (
        GrowthConfig,
        GrowthEvent,
        GrowthHistory,
        GrowthPlan,
        LayerGrowth,
        grow_,
        insert_blocks_,
        merge_pairs_,
        plan_growth,
        to_stock,
    )
    from .training import (
        GrowthCallback,
        GrowthTrainer,
        compare,
        growth_event_,
        probe_batches,
        register_growth_checkpointing,
    )

    SaddleDeiTForImageClassification = models.SaddleDeiTForImageClassification
    SaddleDeiTForImageClassificationWithTeacher = models.SaddleDeiTForImageClassificationWithTeacher
    SaddleDeiTModel = models.SaddleDeiTModel
    SaddleViTForImageClassification = models.SaddleViTForImageClassification
    SaddleViTModel = models.SaddleViTModel

register()

# From the bottom up; loaded when the first of their names is asked for, since a model needs no solver and no Trainer.
_PACKAGES = ("curvature", "growth", "hub", "training")

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
    "compare",
    "grow_",
    "growable",
    "growth_event_",
    "insert_blocks_",
    "merge_pairs_",
    "plan_growth",
    "probe_batches",
    "register_growth_checkpointing",
    "to_stock",
]


if not TYPE_CHECKING:  # type checkers would take every misspelt name for known

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return import_module(f".{name}", __name__)
        if name.startswith("Saddle"):
            return getattr(models, name)
        if name in __all__:
            for package in _PACKAGES:
                module = import_module(f".{package}", __name__)
                if name in module.__all__:
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
