"""Sharing: model cards with the growth history, pictures of it, and what a push to the Hub carries."""

from ..models.modeling_saddle import GrowablePreTrainedModel
from .model_card import render_model_card
from .plots import save_pictures
from .record import TrainingRecord
from .sharing import CARD_FILES, ModelCardMixin, prepare_push, write_companions, write_model_card


GrowablePreTrainedModel.prepare_push = prepare_push
GrowablePreTrainedModel.card_files = CARD_FILES

__all__ = [
    "ModelCardMixin",
    "TrainingRecord",
    "render_model_card",
    "save_pictures",
    "write_companions",
    "write_model_card",
]
