"""How far a step really goes: the loss of samples that chose nothing is measured on the grown model."""

import math
from collections.abc import Callable

from ..records.plan import GrowthPlan
from .joint import Judgement
from .natural_step import stepped


# A step is tried again, shorter, where the parabola through slope and measured loss has its top below this share.
_ENOUGH = 0.7
_SHORTEST = 0.1
_TRIALS = 3


def measured_step(
    plan: GrowthPlan, found: Judgement, loss_before: float, loss_of: Callable[[GrowthPlan], float]
) -> tuple[float, float]:
    """
    How much of a judged step lowers the loss of the samples that judge, and by how much.

    To first order the decrease is known without a trial. A trial at full length says what the higher orders are, which
    the empirical Fisher information tells only of a model that fits its data. Where the parabola through both has its
    top well before, the step ends there, and is tried again.

    Args:
        plan ([`GrowthPlan`]): What is to grow, as it was scored.
        found ([`Judgement`]): The step.
        loss_before (`float`): Loss of the samples that judge.
        loss_of (`Callable`): Maps a plan to their loss on the model as it makes it.

    Returns:
        `tuple[float, float]`: The share of the step that was best of those tried, and the measured decrease of the
        loss there; 0 and 0 where none lowers it.
    """
    best, factor = (0.0, 0.0), 1.0
    for _ in range(_TRIALS):
        decrease = loss_before - loss_of(stepped(plan, found, factor, 0.0))
        if not math.isfinite(decrease):
            factor *= _SHORTEST
            continue
        best = max(best, (factor, decrease), key=lambda tried: tried[1])
        bend = (found.slope * factor - decrease) / factor**2
        top = found.slope / (2 * bend) if bend > 0 else math.inf
        if top >= _ENOUGH * factor:
            break
        factor = max(top, _SHORTEST * factor)
    return best
