"""What `import hf_saddle` tells transformers' Auto classes and the models, so that they are found and bring a card."""

from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .models import (
    GrowablePreTrainedModel,
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleDeiTModel,
    SaddleViTConfig,
    SaddleViTForImageClassification,
    SaddleViTModel,
)
from .models.pushing import before_push


def register() -> None:
    """Make the Auto classes know the models, and let `model.push_to_hub` write a model card."""
    AutoConfig.register("saddle_deit", SaddleDeiTConfig)
    AutoConfig.register("saddle_vit", SaddleViTConfig)
    AutoModel.register(SaddleDeiTConfig, SaddleDeiTModel)
    AutoModel.register(SaddleViTConfig, SaddleViTModel)
    AutoModelForImageClassification.register(
        SaddleDeiTConfig, (SaddleDeiTForImageClassification, SaddleDeiTForImageClassificationWithTeacher)
    )
    AutoModelForImageClassification.register(SaddleViTConfig, SaddleViTForImageClassification)
    before_push(_write_card)


def _write_card(
    model: GrowablePreTrainedModel, folder: Path, repo_id: str, token: str | bool | None
) -> tuple[str, ...]:
    # What a card needs is loaded when the first one is written.
    from .hub.sharing import prepare_push

    return prepare_push(model, folder, repo_id, token)
