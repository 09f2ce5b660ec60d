"""Render the model cards in this folder anew: `python model_cards/render.py`. The weights are not needed."""

from pathlib import Path

import torch
from transformers import AutoConfig

from hf_saddle import models
from hf_saddle.growth import GrowthHistory
from hf_saddle.hub import TrainingRecord, render_model_card, save_pictures
from hf_saddle.hub.states import neuron_counts
from hf_saddle.models.history_file import read_history
from hf_saddle.models.modeling_saddle import GrowablePreTrainedModel


FOLDER = Path(__file__).parent


def trained() -> list[Path]:
    """Folders of models that were really trained."""
    return sorted(path.parent for path in FOLDER.glob("*/config.json"))


def load(folder: Path) -> GrowablePreTrainedModel:
    """The model of a folder, without weights."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = getattr(models, config.architectures[0])(config)
    model.growth_history = read_history(folder, {})
    return model


def render(folder: Path) -> str:
    """The card of a folder."""
    pictures = sorted(path.stem for path in (folder / "pictures").glob("*.png"))
    record = TrainingRecord.load(folder)
    return str(render_model_card(load(folder), record, name=folder.name, pictures=pictures, has_processor=True))


if __name__ == "__main__":
    for path in trained():
        record = TrainingRecord.load(path)
        assert record is not None
        model = load(path)
        history, counts = GrowthHistory.from_model(model), neuron_counts(model)
        save_pictures(path / "pictures", history, record.log, neurons=counts)
        (path / "README.md").write_text(render(path))
