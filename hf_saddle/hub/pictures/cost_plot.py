"""What a loss has cost: parameters and seconds."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ...growth import GrowthHistory
from ..states import states
from .curves import reached, seconds_at, series
from .style import BLUE, label_quantities, mark_event, new_figure


def draw_cost(history: GrowthHistory, log: Sequence[dict[str, float]], key: str) -> Figure:
    """The loss reached at each size, and over the seconds."""
    figure, (left, right) = new_figure(8, 3.2, ncols=2, sharey=True)
    found, values, clock = states(history), series(log, key), seconds_at(log, grew=True)
    left.plot(*zip(*reached(found, values), strict=True), marker="o", color=BLUE)
    timed = [(clock[step], value) for step, value in values if step in clock]
    if timed:
        right.plot(*zip(*timed, strict=True), color=BLUE)
    for number, state in enumerate(found[1:], 1):
        after = min((clock[step] for step in clock if step >= state.step), default=None)
        if timed and after is not None:
            mark_event(right, after, str(number))
    left.set_title("Last value at each size")
    left.set_xlabel("parameters")
    left.set_ylabel("validation loss" if key == "eval_loss" else "training loss")
    label_quantities(left.xaxis)
    right.set_title("Over the seconds" if timed else "Seconds were not logged", pad=16)
    right.set_xlabel("seconds of training, growth included")
    for axes in (left, right):
        axes.grid()
    left.margins(0.12)
    return figure
