"""What `import hf_saddle` tells transformers' Auto classes and the models, so that they are found and bring a card."""

from pathlib import Path

import transformers
from transformers import AutoConfig

from .models import FAMILIES, GrowablePreTrainedModel, config_class, model_class
from .models.configuration_saddle import on_first_use
from .models.pushing import before_push
from .models.stock_classes import auto_classes


def register() -> None:
    """Make the Auto classes know the models, and let `model.push_to_hub` write a model card."""
    for model_type in FAMILIES:
        AutoConfig.register(f"saddle_{model_type}", config_class(model_type))
    # Importing the models of all families would take seconds, and nobody needs one before there is a config of it.
    on_first_use(_register_models)
    before_push(_write_card)


def _register_models(model_type: str) -> None:
    stock_type = model_type.removeprefix("saddle_")
    for auto, names in auto_classes(stock_type):
        kinds = tuple(model_class(getattr(transformers, name), stock_type) for name in names)
        getattr(transformers, auto).register(
            config_class(stock_type), kinds if len(kinds) > 1 else kinds[0], exist_ok=True
        )


def _write_card(
    model: GrowablePreTrainedModel, folder: Path, repo_id: str, token: str | bool | None
) -> tuple[str, ...]:
    # What a card needs is loaded when the first one is written.
    from .hub.sharing import prepare_push

    return prepare_push(model, folder, repo_id, token)
