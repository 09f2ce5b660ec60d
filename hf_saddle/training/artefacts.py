"""The architecture picture and the growth history for reporters that keep more than numbers."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from transformers import TrainerCallback, TrainerState
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..growth import GrowthHistory
from ..hub.pictures.drawing import can_draw, save_pictures
from ..models.history_file import HISTORY_NAME
from ..models.modeling_saddle import GrowablePreTrainedModel


_PICTURE = "growth/architecture"


def share_artefacts(callbacks: Iterable[TrainerCallback], model: GrowablePreTrainedModel, state: TrainerState) -> None:
    """
    Give reporters the picture of a grown model's shape, where matplotlib is installed, and its history.

    TensorBoard gets an image and the history as a table, Weights & Biases an image and an artifact of the kind
    `growth_history`, Trackio an image. Other reporters get the numbers of the log only.

    Args:
        callbacks (`Iterable[TrainerCallback]`): The callbacks of a trainer, reporters among them, still open.
        model ([`GrowablePreTrainedModel`]): The model at the end of its training.
        state (`TrainerState`): The state of the training.
    """
    kinds = (TensorBoardCallback, WandbCallback, TrackioCallback)
    reporters = [callback for callback in callbacks if isinstance(callback, kinds)]
    if not reporters:
        return
    history = GrowthHistory.from_model(model)
    with TemporaryDirectory() as folder:
        picture = Path(folder, "architecture.png")
        if can_draw():
            save_pictures(Path(folder), history)
        history.save(Path(folder, HISTORY_NAME))
        for reporter in reporters:
            _share(reporter, history, picture if picture.is_file() else None, Path(folder, HISTORY_NAME), state)


def _share(
    reporter: TrainerCallback, history: GrowthHistory, picture: Path | None, document: Path, state: TrainerState
) -> None:
    step = state.global_step
    if isinstance(reporter, TensorBoardCallback):
        writer = reporter.tb_writer
        if writer is not None:
            writer.add_text("growth/history", history.table(), step)
            if picture is not None:
                writer.add_image(_PICTURE, np.asarray(Image.open(picture).convert("RGB")), step, dataformats="HWC")
    elif isinstance(reporter, WandbCallback):
        import wandb

        if picture is not None:
            wandb.log({_PICTURE: wandb.Image(str(picture))})
        artifact = wandb.Artifact(f"growth-history-{wandb.run.id}", type="growth_history")
        artifact.add_file(str(document))
        wandb.log_artifact(artifact)
    elif picture is not None:
        import trackio

        trackio.log({_PICTURE: trackio.Image(str(picture))})
