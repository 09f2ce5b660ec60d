"""Pictures of a growth history, drawn without a display; the same history gives the same bytes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ...growth import GrowthHistory
from ..states import states
from .cost_plot import draw_cost
from .curves import last_step, series
from .drawing import SUFFIXES
from .eigenvalue_plot import draw_eigenvalues, measured_events
from .heat_plots import draw_architecture, draw_timeline
from .style import BLUE, ORANGE, STYLE, mark_event, new_figure, save_figure


def draw_pictures(
    folder: Path,
    history: GrowthHistory,
    log: Sequence[dict[str, float]],
    neurons: Mapping[str, int],
) -> list[str]:
    """Draw all pictures of a history and a training log into a folder; see `save_pictures`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = drawings_of(history, log, neurons)
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw()
            for suffix in SUFFIXES:
                save_figure(figure, folder / f"{name}{suffix}")
    return list(drawings)


def drawings_of(
    history: GrowthHistory, log: Sequence[dict[str, float]], neurons: Mapping[str, int]
) -> dict[str, Callable[[], Figure]]:
    """What draws each picture that has something to show, by its name."""
    drawings: dict[str, Callable[[], Figure]] = {"architecture": lambda: draw_architecture(history, neurons)}
    if history.events:
        drawings["timeline"] = lambda: draw_timeline(history, last_step(log))
    if measured_events(history):
        drawings["eigenvalues"] = lambda: draw_eigenvalues(history)
    key = "eval_loss" if series(log, "eval_loss") else "loss"
    if series(log, key):
        drawings["loss"] = lambda: draw_loss(history, log)
    if series(log, key) and history.events:
        drawings["cost"] = lambda: draw_cost(history, log, key)
    return drawings


def draw_loss(history: GrowthHistory, log: Sequence[dict[str, float]]) -> Figure:
    """Training and validation loss, with a mark for every growth event."""
    figure, axes = new_figure(7, 3.2)
    for key, label, line, colour in (("loss", "training", "-", BLUE), ("eval_loss", "validation", "--", ORANGE)):
        values = series(log, key)
        if values:
            axes.plot(*zip(*values, strict=True), line, marker=".", color=colour, label=label)
    found = states(history)
    for number, (before, state) in enumerate(zip(found, found[1:], strict=False), 1):
        more = (state.parameters - before.parameters) / before.parameters
        mark_event(axes, state.step, f"{number}: +{more:.0%}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title("Loss (dotted: growth events and the share of parameters that they added)", pad=16)
    axes.grid(axis="y")
    axes.legend()
    return figure
