"""Where a model grew, as heat maps: its final shape, and that after each event."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ...growth import GrowthHistory
from ..states import gains, short_name, states
from .style import BLUE, BLUES, GROUND, INK, ORANGES, label_quantities, new_figure


def _heat(axes: Axes, values: np.ndarray, texts: Sequence[Sequence[str]], colours: LinearSegmentedColormap) -> None:
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
    rows = gains(history, neurons)
    wide, deep = ([row for row in rows if row.kind == kind] for kind in ("width", "depth"))
    layers = range(len(rows[0].values))
    width = max(5.5, 1.6 + 0.8 * len(layers))
    headed = len(wide) > 1
    ratios = [2.4 if headed else 1.6, len(deep)]
    figure, (top, bottom) = new_figure(width, 4.6 if headed else 4.2, nrows=2, height_ratios=ratios, sharex=True)
    # Colours of each row of widths reach from nothing to the most of its own kind.
    _heat(top, np.array([row.shares() for row in wide]), [row.texts for row in wide], BLUES)
    more = ", and attention heads added" if headed else ""
    top.set_title(f"Width: hidden neurons added to each layer, of those at the start{more}")
    top.set_yticks(range(len(wide)), ["hidden", "heads"][: len(wide)])
    _heat(bottom, np.array([row.shares() for row in deep]), [row.texts for row in deep], ORANGES)
    bottom.set_title("Depth: skip units added to each linear, for its neurons")
    bottom.set_yticks(range(len(deep)), [short_name(row.name) for row in deep])
    bottom.set_xticks(layers, [str(i) for i in layers])
    bottom.set_xlabel("layer (a › b: b units feed the a units)")
    return figure


def draw_timeline(history: GrowthHistory, end: int) -> Figure:
    """Parameters over the training up to its `end`, and the added width and depth of every layer after each event."""
    found = states(history)
    layers = len(found[0].widths)
    below = max(1.2, 0.26 * layers)
    figure, panels = new_figure(
        max(7.0, 3.4 + 0.9 * len(found)), 2.6 + below, mosaic="AA;BC", height_ratios=[1, max(1.0, below / 1.6)]
    )
    top, left, right = (panels[name] for name in "ABC")
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
