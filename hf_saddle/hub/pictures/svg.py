"""Line charts as inline SVG that takes its colours from the page, so that one drawing suits light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..escape import quantity
from ..pages import PAGES


# Where the frame of a chart lies.
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 626, 34, 204


@dataclass(frozen=True)
class Line:
    """
    A series of a chart.

    Attributes:
        label (`str`): What the legend says.
        points (`Sequence[tuple[float, float]]`): In the order of `x`.
        colour (`str`): `"first"` or `"second"`, the two colours of the page; the second is dashed too.
        dots (`bool`): Whether every point has a mark.
        steps (`bool`): Whether a value holds until the next point.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: str = "first"
    dots: bool = False
    steps: bool = False


def chart(
    title: str, lines: Sequence[Line], *, x_label: str, y_label: str, marks: Sequence[tuple[float, str]] = ()
) -> Markup:
    """
    A chart as an `<svg>` element.

    Args:
        title (`str`): What it shows, for readers who do not see it.
        lines (`Sequence[Line]`): At least one with a point.
        x_label, y_label (`str`): What the axes show.
        marks (`Sequence[tuple[float, str]]`, *optional*): Places on the horizontal axis with a name, such as events.
    """
    xs = [x for line in lines for x, _ in line.points] + [x for x, _ in marks]
    ys = [y for line in lines for _, y in line.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    # The frame ends with the last point: beside it an empty part would look like steps to come.
    x_low, x_high = min(x_ticks[0], *xs), max(xs)
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def across(x: float) -> str:
        return f"{_LEFT + (x - x_low) / (x_high - x_low) * (_RIGHT - _LEFT):.1f}"

    def down(y: float) -> str:
        return f"{_BOTTOM - (y - y_low) / (y_high - y_low) * (_BOTTOM - _TOP):.1f}"

    drawn = PAGES.get_template("chart.html").render(
        title=title,
        left=_LEFT,
        right=_RIGHT,
        top=_TOP,
        bottom=_BOTTOM,
        x_ticks=[(across(tick), short(tick)) for tick in x_ticks if tick <= x_high],
        y_ticks=[(down(tick), short(tick)) for tick in y_ticks],
        marks=[(across(at), name) for at, name in marks],
        lines=[(line, [(across(x), down(y)) for x, y in line.points]) for line in lines],
        x_label=x_label,
        y_label=y_label,
    )
    return Markup(drawn)


def ticks(low: float, high: float) -> list[float]:
    """At most six round numbers that span a range, at least two."""
    if not high > low:
        spread = abs(low) or 1.0
        low, high = low - spread / 2, high + spread / 2
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def short(value: float) -> str:
    """A number of an axis: 12.5k and 1.2M."""
    return quantity(value, 4).replace(" ", "")
