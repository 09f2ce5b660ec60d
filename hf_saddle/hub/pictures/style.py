"""How the pictures look, and how they become files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .svg import short


# An opaque light ground reads the same on a light and on a dark page. Blue and orange differ for every kind of colour
# vision; no picture tells things apart by colour alone.
GROUND, INK, MUTED, GRID = "#fcfcfb", "#0b0b0b", "#52514e", "#dddcd6"
BLUE, ORANGE = "#2a78d6", "#c8501e"
BLUES = LinearSegmentedColormap.from_list("blues", ["#eef4fc", "#9ec3f0", "#2a78d6", "#123c73"])
ORANGES = LinearSegmentedColormap.from_list("oranges", ["#fdf1ea", "#f4b894", "#d9622b", "#7c2d0c"])
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": GRID,
    "axes.facecolor": GROUND,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": GROUND,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.hashsalt": "hf-saddle",
    "svg.fonttype": "path",
}


def new_figure(width: float, height: float, mosaic: Any = None, **grid: Any) -> tuple[Figure, Any]:
    """A figure of a size in inches with a grid, or a mosaic, of axes; it belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid) if mosaic is None else figure.subplot_mosaic(mosaic, **grid)


def mark_event(axes: Axes, x: float, text: str) -> None:
    """A dotted line where a growth event was, with a text above."""
    axes.axvline(x, color=MUTED, linewidth=0.8, linestyle=":")
    above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom", "ha": "center"}
    axes.text(x, 1.0, text, color=MUTED, fontsize=8, **above)


def save_figure(figure: Figure, path: Path) -> None:
    """Write PNG or SVG, without the date and the version that would make equal pictures differ."""
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(path, dpi=144, metadata={"Software": None})


def linear_range(values: Iterable[float]) -> float:
    """Up to where a symmetric logarithmic axis is linear, so that it shows two orders of magnitude."""
    return max(max((abs(value) for value in values), default=1.0) / 100, 1e-12)


def label_quantities(axis: Axis) -> None:
    """Ticks such as 12.5k and 1.2M."""
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
