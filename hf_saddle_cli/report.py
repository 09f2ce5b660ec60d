"""`hf-saddle report`: one page about what grew in a saved model."""

from pathlib import Path
from typing import Any

import typer

from hf_saddle.growth import GrowthHistory, count_parameters
from hf_saddle.hub import TrainingRecord, render_report
from hf_saddle.hub.pictures.curves import Baseline
from hf_saddle.hub.report_page import REPORT_NAME
from hf_saddle.hub.states import neuron_counts
from hf_saddle.models.json_files import read_json

from .common import load_shape, quiet


_STATE_NAME = "trainer_state.json"


def write_report(folder: Path, output: Path | None, baseline: Path | None) -> Path:
    """
    Write the report of a saved model; its weights are not read.

    Args:
        folder (`Path`): Folder of the model.
        output (`Path`, *optional*): The page; beside the model if `None`.
        baseline (`Path`, *optional*): Folder of the same training without growth.

    Raises:
        ValueError: If a file is damaged, the history does not fit the model, or the baseline has grown.
    """
    quiet()
    model = load_shape(str(folder))
    history = GrowthHistory.from_model(model)
    if not history.matches(model):
        history.check(model)
    record = TrainingRecord.load(folder)
    log = _log(folder, record)
    if not log:
        typer.echo(
            f"{folder} has no log of its training: the page has no curves, and its timeline ends with the last event. "
            "`trainer.save_state()` or `trainer.create_model_card()` leaves one there.",
            err=True,
        )
    page = render_report(
        history,
        title=folder.resolve().name,
        log=log,
        record=record,
        neurons=neuron_counts(model),
        baseline=None if baseline is None else _baseline(baseline),
    )
    path = folder / REPORT_NAME if output is None else output
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _log(folder: Path, record: TrainingRecord | None) -> list[dict[str, Any]]:
    """The log of the training: that of the record, else the one that a `Trainer` saved."""
    if record is not None and record.log:
        return record.log
    path = folder / _STATE_NAME
    if not path.is_file():
        return []
    # A record checks and cleans a log.
    return TrainingRecord(log=read_json(path, "The state of the training").get("log_history", [])).log


def _baseline(folder: Path) -> Baseline:
    model = load_shape(str(folder))
    if GrowthHistory.from_model(model).events:
        raise ValueError(f"{folder} has grown: a baseline is the same training without growth.")
    log = _log(folder, TrainingRecord.load(folder))
    if not log:
        raise ValueError(f"{folder} has no log of its training, neither a training_record.json nor a {_STATE_NAME}.")
    return Baseline(count_parameters(model), log)
