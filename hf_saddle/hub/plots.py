"""Pictures of a growth history, drawn without a display; the same history gives the same bytes."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ..growth import GrowthEvent, GrowthHistory
from .cost_plot import draw_cost
from .pictures import SUFFIXES
from .states import (
    READING,
    Baseline,
    Growth,
    State,
    blocks_of,
    growths,
    last_step,
    linears,
    series,
    states,
    width_text,
)
from .style import (
    BLUE,
    BLUES,
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


def draw_pictures(
    folder: Path,
    history: GrowthHistory,
    log: Sequence[dict[str, float]],
    neurons: Mapping[str, int],
    baseline: Baseline | None,
) -> list[str]:
    """Draw all pictures of a history and a training log into a folder; see `save_pictures`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[], Figure]] = {"architecture": lambda: draw_architecture(history, neurons)}
    if history.events:
        drawings["timeline"] = lambda: draw_timeline(history, last_step(log))
    if _measured(history):
        drawings["eigenvalues"] = lambda: draw_eigenvalues(history)
    key = "eval_loss" if series(log, "eval_loss") else "loss"
    if series(log, key):
        drawings["loss"] = lambda: draw_loss(history, log)
    if series(log, key) and (history.events or baseline is not None):
        drawings["cost"] = lambda: draw_cost(history, log, key, baseline)
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


def draw_architecture(history: GrowthHistory, neurons: Mapping[str, int]) -> Figure:
    """The final shape: hidden neurons of every layer, and skip units of every linear, layer by layer."""
    first, *_, last = [*states(history)] * 2
    names = linears(history)
    layers = range(len(last.widths))
    width = max(5.5, 1.6 + 0.8 * len(layers))
    headed = any(last.heads)
    ratios = [2.4 if headed else 1.6, len(names)]
    figure, (top, bottom) = new_figure(width, 4.6 if headed else 4.2, nrows=2, height_ratios=ratios, sharex=True)
    added = np.array([[last.widths[i] - first.widths[i] for i in layers]], dtype=float)
    texts = [[width_text(first.widths[i], last.widths[i]) for i in layers]]
    if headed:
        # Colours of both rows reach from nothing to the most of their own kind.
        both = np.array([added[0], last.heads], dtype=float)
        added = both / both.max(axis=1, keepdims=True).clip(1)
        texts.append([f"+{number}" if number else "" for number in last.heads])
    _heat(top, added, texts, BLUES)
    more = ", and attention heads added" if headed else ""
    top.set_title(f"Width: hidden neurons added to each layer, of those at the start{more}")
    top.set_yticks(range(len(texts)), ["hidden", "heads"][: len(texts)])
    units = np.array([[last.units(i, linear) for i in layers] for linear in names], dtype=float)
    blocks = blocks_of(history.shapes)
    texts = [[_units(last, neurons, i, linear, blocks[i]) for i in layers] for linear in names]
    _heat(bottom, units, texts, ORANGES)
    bottom.set_title("Depth: skip units added to each linear, for its neurons")
    bottom.set_yticks(range(len(names)), [_short(linear) for linear in names])
    bottom.set_xticks(layers, [str(i) for i in layers])
    bottom.set_xlabel("layer (a › b: b units feed the a units)")
    return figure


def _short(linear: str) -> str:
    """A name in a layer that fits beside a picture."""
    parts = linear.split(".")
    return ".".join(parts[-2:]) if parts[-1] in ("dense", "convolution") else parts[-1]


def _units(state: State, neurons: Mapping[str, int], layer: int, linear: str, block: str) -> str:
    """`+10 › 2 for 64`: ten units of a linear of 64 neurons, fed by two more."""
    sizes = state.branches[layer].get(linear, [])
    if not sizes:
        return ""
    total = neurons.get(f"{block}.{linear}")
    return f"+{' › '.join(map(str, sizes))}" + ("" if total is None else f" for {total}")


def draw_timeline(history: GrowthHistory, end: int) -> Figure:
    """Parameters over the training up to its `end`, and the added width and depth of every layer after each event."""
    found = states(history)
    layers = len(found[0].widths)
    figure, (top, left, right) = _three_panels(max(7.0, 3.4 + 0.9 * len(found)), 2.6 + max(1.2, 0.26 * layers))
    steps = [state.step for state in found]
    until = end if end > steps[-1] else steps[-1] + max(1, steps[-1]) * 0.06
    top.step([*steps, until], [*(s.parameters for s in found), found[-1].parameters], where="post")
    for number, state in enumerate(found[1:], 1):
        top.plot(state.step, state.parameters, "o", color=BLUE, markersize=5)
        top.annotate(str(number), (state.step, state.parameters), (-3, 4), textcoords="offset points", ha="right")
    top.set_title("Parameters over the training (numbers: events)")
    top.set_xlabel("step")
    label_quantities(top.yaxis)
    top.margins(y=0.15)
    top.grid(axis="y")
    widths = np.array([[s.widths[i] - found[0].widths[i] for s in found] for i in range(layers)], dtype=float)
    units = np.array(
        [[sum(s.units(i, name) for name in s.branches[i]) for s in found] for i in range(layers)], dtype=float
    )
    for axes, values, title, colours in (
        (left, widths, "Added hidden neurons", BLUES),
        (right, units, "Added skip units", ORANGES),
    ):
        _heat(axes, values, [[f"{int(value)}" if value else "" for value in row] for row in values], colours)
        axes.set_title(title)
        axes.set_xticks(range(len(found)), ["start", *(str(i) for i in range(1, len(found)))])
        axes.set_yticks(range(layers), [str(i) for i in range(layers)])
        axes.set_xlabel("after event")
    left.set_ylabel("layer")
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
    """Range and mean of the eigenvalues of neurons that grew, one panel per event, one line per linear that grew."""
    events = _measured(history)
    grown = [growth for _, event in events for growth in growths(event)]
    names = [*linears(history), *(growth.linear for growth in grown if growth.of_heads)]
    found = {_place(growth) for growth in grown}
    places = sorted(found, key=lambda place: (place[0], names.index(place[1]), place[2]))
    columns = min(3, len(events))
    rows = math.ceil(len(events) / columns)
    size = (max(6.5, 1.6 + 2.4 * columns), 1.5 + rows * (0.7 + 0.17 * len(places)))
    figure, panels = new_figure(*size, nrows=rows, ncols=columns, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(events) :]:
        panel.set_visible(False)
    for panel, (number, event) in zip(panels.flat, events, strict=False):
        for growth in growths(event):
            # Width and depth of one linear lie one above the other.
            height = places.index(_place(growth)) + (-0.18 if growth.widens else 0.18)
            low, mean, high = growth.eigenvalues
            colour, marker = (BLUE, "o") if growth.widens else (ORANGE, "s")
            panel.plot([low, high], [height, height], color=colour, linewidth=2.5, alpha=0.45)
            panel.plot(mean, height, marker, color=colour, markersize=4)
        panel.axvline(0, color=MUTED, linewidth=0.8)
        time = "" if event.step is None else f", step {event.step}"
        panel.set_title(f"event {number}{time}", fontsize=9)
        panel.set_ylim(len(places) - 0.4, -0.6)
        panel.set_yticks(range(len(places)), [_label(place) for place in places], fontsize=8)
        panel.grid(axis="both")
    values = [value for _, event in events for value in _values(event)]
    panels[0, 0].set_xscale("symlog", linthresh=linear_range(values))
    decade = 10.0 ** math.floor(math.log10(max(max(map(abs, values)), 1e-12)))
    panels[0, 0].set_xticks([-decade, -decade / 10, 0.0, decade / 10, decade])
    figure.supxlabel(
        f"eigenvalue of the neurons that grew (marks: mean, bars: range)\n{READING}", color=MUTED, fontsize=8
    )
    panels[0, 0].plot([], [], "o", color=BLUE, label="width")
    panels[0, 0].plot([], [], "s", color=ORANGE, label="depth")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _place(growth: Growth) -> tuple[int, str, int]:
    return growth.layer, growth.linear, growth.nested


def _label(place: tuple[int, str, int]) -> str:
    """`3 fc1 ›`: the branch of the first linear of the MLP of layer 3."""
    layer, linear, nested = place
    return f"{layer} {_short(linear)}{' ›' * nested}"


def _values(event: GrowthEvent) -> list[float]:
    return [value for growth in growths(event) for value in growth.eigenvalues]


def _measured(history: GrowthHistory) -> list[tuple[int, GrowthEvent]]:
    """Events whose eigenvalues were measured; growth by hand has none."""
    return [(i, event) for i, event in enumerate(history.events, 1) if event.layers and event.criterion is not None]


def draw_loss(history: GrowthHistory, log: Sequence[dict[str, float]]) -> Figure:
    """Training and validation loss, with a mark for every growth event."""
    figure, axes = new_figure(7, 3.2)
    for key, label, line, colour in (("loss", "training", "-", BLUE), ("eval_loss", "validation", "--", ORANGE)):
        values = series(log, key)
        if values:
            axes.plot(*zip(*values, strict=True), line, marker=".", color=colour, label=label)
    _mark_events(axes, states(history))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title("Loss (dotted: growth events and the share of parameters that they added)", pad=16)
    axes.grid(axis="y")
    axes.legend()
    return figure


def _mark_events(axes: Axes, found: list[State]) -> None:
    for number, (before, state) in enumerate(zip(found, found[1:], strict=False), 1):
        axes.axvline(state.step, color=MUTED, linewidth=0.8, linestyle=":")
        text = f"{number}: +{(state.parameters - before.parameters) / before.parameters:.0%}"
        above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom", "ha": "center"}
        axes.text(state.step, 1.0, text, color=MUTED, fontsize=8, **above)
