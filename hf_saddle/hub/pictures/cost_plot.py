"""What a loss has cost: parameters and seconds, beside the same training without growth where there is one."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ...growth import GrowthHistory
from ..states import states
from .curves import Baseline, cost_curves, seconds_at
from .style import BLUE, ORANGE, label_quantities, mark_event, new_figure


_LOOKS = {"this model": (BLUE, "-", "o"), "without growth": (ORANGE, "--", "s")}


def draw_cost(history: GrowthHistory, log: Sequence[dict[str, float]], key: str, baseline: Baseline | None) -> Figure:
    """The loss reached at each size, and over the seconds, beside that of a training without growth."""
    figure, (left, right) = new_figure(8, 3.2, ncols=2, sharey=True)
    sizes, timed = cost_curves(history, log, key, baseline)
    for name, points in sizes.items():
        colour, line, mark = _LOOKS[name]
        left.plot(*zip(*points, strict=True), line, marker=mark, color=colour, label=name)
    for name, points in timed.items():
        colour, line, _ = _LOOKS[name]
        right.plot(*zip(*points, strict=True), line, color=colour, label=name)
    clock = seconds_at(log, grew=bool(history.events))
    for number, state in enumerate(states(history)[1:], 1):
        after = min((clock[step] for step in clock if step >= state.step), default=None)
        if "this model" in timed and after is not None:
            mark_event(right, after, str(number))
    left.set_title("Last value at each size")
    left.set_xlabel("parameters")
    left.set_ylabel("validation loss" if key == "eval_loss" else "training loss")
    label_quantities(left.xaxis)
    right.set_title("Over the seconds" if "this model" in timed else "Seconds were not logged", pad=16)
    right.set_xlabel("seconds of training, growth included")
    for axes in (left, right):
        axes.grid()
    left.margins(0.12)
    left.legend()
    return figure
