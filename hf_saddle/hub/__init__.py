"""Sharing: model cards with the growth history, pictures of it, and what a push to the Hub carries."""

from .comparison import Comparison
from .model_card import render_model_card
from .pictures.drawing import save_comparison, save_pictures
from .record import TrainingRecord
from .report_page import render_report
from .sharing import ModelCardMixin, write_companions, write_model_card


__all__ = [
    "Comparison",
    "ModelCardMixin",
    "TrainingRecord",
    "render_model_card",
    "render_report",
    "save_comparison",
    "save_pictures",
    "write_companions",
    "write_model_card",
]
