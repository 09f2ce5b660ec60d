"""The eigenvalues of neurons that grew, as far as they were measured."""

import math

from matplotlib.figure import Figure

from ...growth import GrowthEvent, GrowthHistory
from ..states import READING, Growth, growths, linears, short_name
from .style import BLUE, MUTED, ORANGE, linear_range, new_figure


def draw_eigenvalues(history: GrowthHistory) -> Figure:
    """Range and mean of the eigenvalues of neurons that grew, one panel per event, one line per linear that grew."""
    events = measured_events(history)
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
    return f"{layer} {short_name(linear)}{' ›' * nested}"


def _values(event: GrowthEvent) -> list[float]:
    return [value for growth in growths(event) for value in growth.eigenvalues]


def measured_events(history: GrowthHistory) -> list[tuple[int, GrowthEvent]]:
    """Events whose eigenvalues were measured; growth by hand has none."""
    return [(i, event) for i, event in enumerate(history.events, 1) if event.layers and event.criterion is not None]
