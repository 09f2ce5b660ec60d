"""A resumed run grows as the one that it goes on with, or says in what it differs."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...growth import GrowthConfig, GrowthHistory, PaperGrowthConfig
from ...growth.old_names import current_names
from ...models.history_file import HISTORY_NAME
from ..course import Course


logger = logging.getLogger(__name__)


def left_out(config: GrowthConfig, course: Course, step: int) -> int:
    """Number of events that were due before a step of a run that was trained without growing, with a warning."""
    missed, progress = 0, course.progress(config, step)
    while missed <= step and config.event_due(progress, missed):
        missed += 1
    logger.warning(
        f"The checkpoint was written without a GrowthCallback: {missed} events that were due before step {step} are "
        "left out."
    )
    return missed


def note_changes(saved: dict[str, Any], config: GrowthConfig, events_done: int) -> None:
    """Warn of the fields in which a config differs from the one that a run began with."""
    idle = PaperGrowthConfig().to_dict()
    current, lost = current_names(saved, idle)
    # Made anew, as an earlier version wrote no `at` beside its epochs or steps.
    before, now = PaperGrowthConfig(**current).to_dict(), idle | config.to_dict()
    changes = [f"{name} {before[name]!r} → {value!r}" for name, value in now.items() if before[name] != value]
    changes += [f"{name} {saved[name]!r} → left out" for name in lost]
    if changes:
        logger.warning(
            f"The resumed run grows by another GrowthConfig from now on: {', '.join(changes)}. The {events_done} "
            "events that it had count."
        )


def check_given(before: Sequence[str], now: Sequence[str]) -> None:
    """
    Verify that a resumed run gives the arguments of its callback that a checkpoint cannot hold.

    Raises:
        ValueError: If one is not given any more.
    """
    for name in before:
        if name not in now:
            raise ValueError(
                f"The run that is resumed gave `{name}` to GrowthCallback. Give it again, or its events would be "
                "other ones; `restore_callback_states_from_checkpoint` keeps it in a GrowthTrainer only."
            )


def saved_history(folder: str | Path) -> dict[str, Any] | None:
    """The growth history beside saved weights; `None` if the model had not grown."""
    path = Path(folder, HISTORY_NAME)
    return GrowthHistory.load(path).to_dict() if path.is_file() else None
