"""Line charts as inline SVG that takes its colours from the page, so that one drawing suits light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .escape import markup, quantity


WIDTH, HEIGHT = 640, 244
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 34, 40


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
    x_low, x_high = min(x_ticks[0], *xs), max(x_ticks[-1], *xs)
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[str, str]:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        up = HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f}", f"{up:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{markup(title)}">']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" text-anchor="end" dy=".32em" x="{_LEFT - 6}" y="{y}">{short(tick)}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{x}" y="{HEIGHT - _BOTTOM + 15}">{short(tick)}</text>'
        )
    for at, name in marks:
        x, _ = place(at, y_low)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{x}" y="{_TOP - 5}">{markup(name)}</text>')
    for line in lines:
        parts += _series(line, [place(x, y) for x, y in line.points])
    middle = (_LEFT + WIDTH - _RIGHT) // 2
    parts.append(f'<text class="label" text-anchor="middle" x="{middle}" y="{HEIGHT - 6}">{markup(x_label)}</text>')
    parts.append(f'<text class="label" x="4" y="12">{markup(y_label)}</text></svg>')
    legend = "".join(f'<li class="{line.colour}">{markup(line.label)}</li>' for line in lines)
    return Markup(f'<figure>{"".join(parts)}<figcaption><ul class="legend">{legend}</ul></figcaption></figure>')


def _series(line: Line, points: Sequence[tuple[str, str]]) -> list[str]:
    parts = []
    if len(points) > 1:
        path = [" ".join(points[0])]
        for x, y in points[1:]:
            path.append(f"H{x}V{y}" if line.steps else f"L{x} {y}")
        parts.append(f'<path class="{line.colour}" d="M{"".join(path)}"/>')
    if line.dots or len(points) == 1:
        parts += [f'<circle class="{line.colour}" cx="{x}" cy="{y}" r="3.5"/>' for x, y in points]
    return parts


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers that span a range, at least two."""
    if not high > low:
        spread = abs(low) or 1.0
        low, high = low - spread / 2, high + spread / 2
    rough = (high - low) / (most - 2)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def short(value: float) -> str:
    """A number of an axis: 12.5k and 1.2M."""
    return quantity(value, 4).replace(" ", "")
