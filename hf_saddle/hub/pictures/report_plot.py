"""A picture of a curvature report: all eigenvalues, and which of them stand out from noise."""

from pathlib import Path

import matplotlib
import numpy as np

from ...curvature import CurvatureReport
from ...models.sites import Place
from .style import BLUE, GRID, INK, MUTED, ORANGE, STYLE, linear_range, new_figure, save_figure


def draw_report(path: Path, report: CurvatureReport) -> None:
    """
    Draw the held-out eigenvalue of every neuron, one column per linear and one panel per criterion.

    Args:
        path (`Path`): A file that ends in `.png` or `.svg`.
        report ([`~hf_saddle.CurvatureReport`]): The measurement.
    """
    criteria = list(dict.fromkeys(entry.criterion for entry in report))
    most = max(sum(entry.criterion == criterion for entry in report) for criterion in criteria)
    with matplotlib.rc_context(STYLE):
        figure, panels = new_figure(
            max(6.0, 1.6 + 0.27 * most), 3.4 * len(criteria), nrows=len(criteria), squeeze=False
        )
        for axes, criterion in zip(panels.flat, criteria, strict=True):
            entries = [entry for entry in report if entry.criterion == criterion]
            # Neurons of a linear are spread over its column in their own order.
            for place, entry in enumerate(entries):
                columns = place + np.linspace(-0.35, 0.35, entry.neurons)
                values, clear = entry.eigenvalue.numpy(), entry.significant.numpy()
                axes.plot(columns[~clear], values[~clear], ".", color=BLUE, markersize=2.5, alpha=0.5)
                axes.plot(columns[clear], values[clear], "D", color=ORANGE, markersize=3)
            chosen = sum(entry.candidates for entry in entries)
            axes.set_title(
                f"{criterion}: {chosen} of {sum(entry.neurons for entry in entries)} neurons are candidates"
            )
            axes.set_xticks(range(len(entries)), [_short(entry.linear) for entry in entries], rotation=90, fontsize=7)
            axes.set_xlim(-0.6, len(entries) - 0.4)
            axes.set_yscale("symlog", linthresh=linear_range(float(entry.eigenvalue.abs().max()) for entry in entries))
            axes.axhline(0, color=MUTED, linewidth=0.8)
            axes.set_ylabel("eigenvalue, held out")
            axes.grid(axis="y")
            for place in range(1, len(entries)):
                axes.axvline(place - 0.5, color=GRID, linewidth=0.5)
        axes.plot([], [], "D", color=ORANGE, markersize=3, label="candidate")
        axes.plot([], [], ".", color=BLUE, markersize=4, label="within noise")
        figure.legend(loc="outside lower right", ncols=2, labelcolor=INK)
        save_figure(figure, path)


def _short(path: str) -> str:
    """`deit.layers.3.mlp.fc1.skip.linear` as `layers.3 fc1›`."""
    place = Place.parse(path)
    name = place.linear.removesuffix(".convolution").removesuffix(".dense").split(".")[-1]
    return f"{place.block} {name}{'›' * place.depth}"
