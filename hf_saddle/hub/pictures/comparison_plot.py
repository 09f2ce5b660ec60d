"""A picture of a comparison: the validation loss of every arm over what it has cost."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..comparison import ARMS, COSTS, GROWTH, NONE, RANDOM, Comparison
from ..intervals import mean_interval
from .style import BLUE, MUTED, ORANGE, STYLE, label_quantities, new_figure, save_figure


_LOOKS = {NONE: (ORANGE, "--", "s"), GROWTH: (BLUE, "-", "o"), RANDOM: (MUTED, ":", "^")}
# Losses of less than that are drawn there, so that they have a logarithm.
_LEAST = 1e-12


def draw_comparison(paths: Sequence[Path], comparison: Comparison) -> None:
    """Draw a comparison into files; see `save_comparison`."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(7, 3.6)
        for arm in ARMS:
            colour, line, mark = _LOOKS[arm]
            # Every training was measured at the same shares of its budget. Intervals of logarithms, on an axis of
            # logarithms, do not reach below zero.
            points = list(zip(*(run.curve for run in comparison.of(arm)), strict=False))
            costs = [mean_interval([cost for cost, _ in point])[0] for point in points]
            found = [mean_interval([math.log(max(loss, _LEAST)) for _, loss in point]) for point in points]
            losses = [math.exp(mean) for mean, _ in found]
            axes.plot(costs, losses, line, color=colour, marker=mark, markersize=4, label=arm)
            bands = [(math.exp(mean - half), math.exp(mean + half)) for mean, half in found if half is not None]
            if bands:
                low, high = zip(*bands, strict=True)
                axes.fill_between(costs, low, high, color=colour, alpha=0.15, linewidth=0)
        seeds = len(comparison.seeds)
        band = "bands: 95 % intervals of each arm alone" if seeds > 1 else "one seed, no intervals"
        axes.set_title(f"Validation loss at equal cost ({seeds} seed{'s' * (seeds > 1)}; {band})")
        axes.set_xlabel(f"{COSTS[comparison.cost]}, growth included")
        axes.set_ylabel("validation loss (geometric mean)" if seeds > 1 else "validation loss")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        label_quantities(axes.xaxis)
        axes.grid()
        axes.legend()
        for path in paths:
            save_figure(figure, path)
