"""Pictures of a growth history, drawn without a display; the same history gives the same bytes."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ..growth import GrowthEvent, GrowthHistory
from .pictures import SUFFIXES
from .states import State, growths, linears_of, parameters_at, states
from .style import (
    BLUE,
    BLUES,
    GRID,
    GROUND,
    INK,
    MUTED,
    ORANGE,
    ORANGES,
    STYLE,
    label_quantities,
    linear_range,
    new_figure,
    save_figure,
)


def draw_pictures(folder: Path, history: GrowthHistory, log: Sequence[dict[str, float]]) -> list[str]:
    """Draw all pictures of a history and a training log into a folder; see `save_pictures`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[], Figure]] = {"architecture": lambda: draw_architecture(history)}
    if history.events:
        drawings["timeline"] = lambda: draw_timeline(history)
    if _measured(history):
        drawings["eigenvalues"] = lambda: draw_eigenvalues(history)
    if _series(log, "loss") or _series(log, "eval_loss"):
        drawings["loss"] = lambda: draw_loss(history, log)
    if _series(log, "eval_accuracy"):
        drawings["accuracy"] = lambda: draw_accuracy(history, log)
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw()
            for suffix in SUFFIXES:
                save_figure(figure, folder / f"{name}{suffix}")
    return list(drawings)


def _heat(axes: Axes, values: np.ndarray, texts: list[list[str]], colours: LinearSegmentedColormap) -> None:
    """A heat map whose every cell also says its value; a cell without growth stays empty."""
    top = max(float(values.max()), 1.0)
    axes.imshow(values, cmap=colours, vmin=0, vmax=top, aspect="auto")
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            dark = values[row, column] > 0.55 * top
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=GROUND if dark else INK)
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GROUND, linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def draw_architecture(history: GrowthHistory) -> Figure:
    """The final shape: width of the MLP and skip units of every linear, layer by layer."""
    first, *_, last = [*states(history)] * 2
    linears = linears_of([last])
    layers = range(len(last.widths))
    width = max(5.5, 1.6 + 0.62 * len(layers))
    figure, (top, bottom) = new_figure(width, 3.6, nrows=2, height_ratios=[1.6, len(linears)], sharex=True)
    added = np.array([[last.widths[i] - first.widths[i] for i in layers]], dtype=float)
    texts = [[f"{last.widths[i]}\n(+{int(added[0, i])})" if added[0, i] else str(last.widths[i]) for i in layers]]
    _heat(top, added, texts, BLUES)
    top.set_title("Width: hidden neurons of each block (in brackets: added)")
    top.set_yticks([0], ["mlp"])
    units = np.array([[last.units(i, linear) for i in layers] for linear in linears], dtype=float)
    texts = [[" › ".join(map(str, last.branches[i].get(linear, []))) for i in layers] for linear in linears]
    _heat(bottom, units, texts, ORANGES)
    bottom.set_title("Depth: skip units of each linear (a › b: b units feed the a units)")
    bottom.set_yticks(range(len(linears)), [linear.removesuffix(".convolution") for linear in linears])
    bottom.set_xticks(layers, [str(i) for i in layers])
    bottom.set_xlabel("block")
    return figure


def draw_timeline(history: GrowthHistory) -> Figure:
    """Parameters over the training, and the added width and depth of every layer after each event."""
    found = states(history)
    layers = len(found[0].widths)
    figure, (top, left, right) = _three_panels(max(7.0, 3.4 + 0.9 * len(found)), 2.6 + max(1.2, 0.26 * layers))
    steps = [state.step for state in found]
    margin = max(1, steps[-1]) * 0.06
    top.step([*steps, steps[-1] + margin], [*(s.parameters for s in found), found[-1].parameters], where="post")
    for number, state in enumerate(found[1:], 1):
        top.plot(state.step, state.parameters, "o", color=BLUE, markersize=5)
        top.annotate(str(number), (state.step, state.parameters), (-3, 4), textcoords="offset points", ha="right")
    top.set_title("Parameters over the training (numbers: events)")
    top.set_xlabel("step")
    label_quantities(top.yaxis)
    top.margins(y=0.15)
    top.grid(axis="y")
    widths = np.array([[s.widths[i] - found[0].widths[i] for s in found] for i in range(layers)], dtype=float)
    units = np.array([[sum(map(sum, s.branches[i].values())) for s in found] for i in range(layers)], dtype=float)
    for axes, values, title, colours in (
        (left, widths, "Added hidden neurons", BLUES),
        (right, units, "Added skip units", ORANGES),
    ):
        _heat(axes, values, [[f"{int(value)}" if value else "" for value in row] for row in values], colours)
        axes.set_title(title)
        axes.set_xticks(range(len(found)), ["start", *(str(i) for i in range(1, len(found)))])
        axes.set_yticks(range(layers), [str(i) for i in range(layers)])
        axes.set_xlabel("after event")
    left.set_ylabel("block")
    return figure


def _three_panels(width: float, height: float) -> tuple[Figure, tuple[Axes, Axes, Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=[1, max(1.0, (height - 2.6) / 1.6)])
    return figure, (
        figure.add_subplot(grid[0, :]),
        figure.add_subplot(grid[1, 0]),
        figure.add_subplot(grid[1, 1]),
    )


def draw_eigenvalues(history: GrowthHistory) -> Figure:
    """Range and mean of the eigenvalues of neurons that grew, one panel per event, the linears of a layer in order."""
    events = _measured(history)
    columns = min(3, len(events))
    rows = math.ceil(len(events) / columns)
    layers = len(states(history)[0].widths)
    linears = list(dict.fromkeys(growth.linear for _, event in events for growth in growths(event)))
    size = (max(5.5, 0.8 + columns * max(2.0, 0.24 * layers)), 0.9 + 2.1 * rows)
    figure, panels = new_figure(*size, nrows=rows, ncols=columns, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(events) :]:
        panel.set_visible(False)
    for panel, (number, event) in zip(panels.flat, events, strict=False):
        for growth in growths(event):
            place = growth.layer + (linears.index(growth.linear) + 0.5 - len(linears) / 2) / (len(linears) + 1)
            low, mean, high = growth.eigenvalues
            colour, marker = (BLUE, "o") if growth.widens else (ORANGE, "s")
            panel.plot([place, place], [low, high], color=colour, linewidth=2.5, alpha=0.45)
            panel.plot(place, mean, marker, color=colour, markersize=4)
        panel.axhline(0, color=MUTED, linewidth=0.8)
        time = "" if event.step is None else f", step {event.step}"
        panel.set_title(f"event {number}{time}", fontsize=9)
        panel.set_xlim(-0.5, layers - 0.5)
        panel.set_xticks(range(layers))
        panel.grid(axis="y")
    panels[0, 0].set_yscale("symlog", linthresh=linear_range(value for _, event in events for value in _values(event)))
    figure.supxlabel("block (marks: mean, bars: range)", color=MUTED, fontsize=9)
    figure.supylabel("eigenvalue", color=MUTED, fontsize=9)
    panels[0, 0].plot([], [], "o", color=BLUE, label="width")
    panels[0, 0].plot([], [], "s", color=ORANGE, label="depth")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _values(event: GrowthEvent) -> list[float]:
    return [value for growth in growths(event) for value in growth.eigenvalues]


def _measured(history: GrowthHistory) -> list[tuple[int, GrowthEvent]]:
    """Events whose eigenvalues were measured; growth by hand has none."""
    return [(i, event) for i, event in enumerate(history.events, 1) if event.layers and event.criterion is not None]


def draw_loss(history: GrowthHistory, log: Sequence[dict[str, float]]) -> Figure:
    """Training and validation loss, with a mark for every growth event."""
    figure, axes = new_figure(7, 3.2)
    for key, label, line, colour in (("loss", "training", "-", BLUE), ("eval_loss", "validation", "--", ORANGE)):
        series = _series(log, key)
        if series:
            axes.plot(*zip(*series, strict=True), line, marker=".", color=colour, label=label)
    _mark_events(axes, states(history))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title("Loss (dotted: growth events and the share of parameters that they added)", pad=16)
    axes.grid(axis="y")
    axes.legend()
    return figure


def draw_accuracy(history: GrowthHistory, log: Sequence[dict[str, float]]) -> Figure:
    """Validation accuracy against the number of parameters at that time."""
    found = states(history)
    series = _series(log, "eval_accuracy")
    sizes = [parameters_at(found, step) for step, _ in series]
    figure, axes = new_figure(5.5, 3.4)
    axes.plot(sizes, [value for _, value in series], "-", color=GRID, zorder=1)
    axes.scatter(sizes, [value for _, value in series], s=18, color=BLUE, zorder=2)
    for index, place, side in ((0, (6, -4), "left"), (-1, (-6, 6), "right")):
        step, value = series[index]
        axes.annotate(
            f"step {step}: {value:.3f}", (sizes[index], value), place, textcoords="offset points", ha=side, color=INK
        )
    axes.set_xlabel("parameters")
    axes.set_ylabel("validation accuracy")
    axes.set_title("Accuracy against size, evaluation by evaluation")
    label_quantities(axes.xaxis)
    axes.margins(0.12)
    axes.grid()
    return figure


def _mark_events(axes: Axes, found: list[State]) -> None:
    for number, (before, state) in enumerate(zip(found, found[1:], strict=False), 1):
        axes.axvline(state.step, color=MUTED, linewidth=0.8, linestyle=":")
        text = f"{number}: +{(state.parameters - before.parameters) / before.parameters:.0%}"
        above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom", "ha": "center"}
        axes.text(state.step, 1.0, text, color=MUTED, fontsize=8, **above)


def _series(log: Sequence[dict[str, float]], key: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), float(entry[key])) for entry in log if key in entry and "step" in entry]
