"""What a loss has cost: parameters and seconds, beside the same training without growth where there is one."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..growth import GrowthHistory
from .states import Baseline, reached, seconds_at, series, states
from .style import BLUE, ORANGE, label_quantities, mark_event, new_figure


def draw_cost(history: GrowthHistory, log: Sequence[dict[str, float]], key: str, baseline: Baseline | None) -> Figure:
    """The loss reached at each size, and over the seconds, beside that of a training without growth."""
    figure, (left, right) = new_figure(8, 3.2, ncols=2, sharey=True)
    found, values = states(history), series(log, key)
    name = "validation loss" if key == "eval_loss" else "training loss"
    sizes = reached(found, values)
    left.plot(*zip(*sizes, strict=True), "-", marker="o", color=BLUE, label="this model")
    clock = seconds_at(log, grew=bool(history.events))
    timed = [(clock[step], value) for step, value in values if step in clock]
    if timed:
        right.plot(*zip(*timed, strict=True), "-", color=BLUE, label="this model")
    for number, state in enumerate(found[1:], 1):
        after = min((clock[step] for step in clock if step >= state.step), default=None)
        if timed and after is not None:
            mark_event(right, after, str(number))
    if baseline is not None:
        other = series(baseline.log, key)
        if other:
            left.plot(baseline.parameters, other[-1][1], "s", color=ORANGE, label="without growth")
        clock = seconds_at(baseline.log, grew=False)
        timed_other = [(clock[step], value) for step, value in other if step in clock]
        if timed_other:
            right.plot(*zip(*timed_other, strict=True), "--", color=ORANGE, label="without growth")
    left.set_title("Last value at each size")
    left.set_xlabel("parameters")
    left.set_ylabel(name)
    label_quantities(left.xaxis)
    right.set_title("Over the seconds" if timed else "Seconds were not logged", pad=16)
    right.set_xlabel("seconds of training, growth included")
    for axes in (left, right):
        axes.grid()
    left.margins(0.12)
    left.legend()
    return figure
