"""What an event will do, decided by all processes together: measured, chosen, tried on samples that chose nothing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...curvature import UnitScores
from ...curvature.loss import Loss
from ...growth import GrowthConfig, GrowthPlan, LayerGrowth, block_candidates, event_budget
from ...growth.budget import sizes
from ...growth.choice.block_planner import choose_blocks
from ...growth.choice.halves import halves
from ...growth.choice.natural_step import columns_of
from ...growth.choice.planner import choose_growths, priced
from ...growth.choice.reasons import no_budget
from ...growth.operators import SCALED
from ...growth.surgery.grow import Growing, growing_
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..distributed import Replicas
from .across import decide_across
from .measuring import candidates_of, loss_before, measure_neurons, score_neurons, try_step
from .moment import Moment


class Decision(NamedTuple):
    """
    What an event will do.

    Attributes:
        plan ([`GrowthPlan`]): The plan that all processes agree on.
        loss_before (`float`, *optional*): Mean loss of the probe, where it was measured.
        batches (`Sequence`): The batches of this process that it was measured on, as the loss afterwards has to be: a
            loss may depend on how its samples are cut into batches.
    """

    plan: GrowthPlan
    loss_before: float | None
    batches: Sequence[Any]


def decide(
    model: GrowablePreTrainedModel,
    batches: Sequence[Any],
    config: GrowthConfig,
    moment: Moment,
    *,
    loss: Loss,
    replicas: Replicas,
    growing: Growing = growing_,
) -> Decision:
    """
    What all processes agree on; nothing is measured without a budget.

    Where units move at once, one half of the probe chooses them and their step, and the other half judges both: the
    predicted gain is what the loss of these samples fell by when the step was tried. For what is measured so the model
    grows by `growing`, for a while.
    """
    allowed = event_budget(model, config, moment.event, moment.lr_ratio, moment.to_come)
    if allowed <= 0:
        why = no_budget(*sizes(model, config), config, moment.event)
        plan = GrowthPlan(criterion=config.criterion, budget=0.0, seed=config.growth_seed, held_back=why)
        return Decision(plan, None, batches)

    if config.kinds.several or config.budget_unit == "seconds":
        plan = decide_across(model, batches, config, moment, loss=loss, replicas=replicas, growing=growing)
        return Decision(plan, loss_before(model, batches, loss, replicas), batches)
    if config.kinds.only_blocks:
        how = str(config.kinds.blocks)
        where: dict[str, Any] = {"places": config.layers, "how": how, "ranks": replicas, "growing": growing}
        candidates = block_candidates(model, batches, loss=loss, **where)
        plan = replicas.agree_on(choose_blocks(candidates, config, allowed))
        return Decision(plan, loss_before(model, batches, loss, replicas), batches)
    choosing, judging = halves(batches, replicas) if config.judged else (list(batches), [])
    report = measure_neurons(model, choosing, config, event=moment.event, loss=loss, replicas=replicas)

    def scores_of(growths: Sequence[LayerGrowth]) -> UnitScores:
        return score_neurons(model, growths, choosing, judging, loss=loss, replicas=replicas)

    offered = replicas.together("Looking for what may grow", lambda: candidates_of(report, model, config))
    pursued = scores_of(offered) if offered else None

    def choose() -> tuple[GrowthPlan, UnitScores | None]:
        return choose_growths(report, model, config, allowed, pursued)

    plan, scores = replicas.together("Planning the growth", choose)
    plan = replicas.agree_on(plan)
    moving = [growth for growth in plan.growths if growth.operator in SCALED]
    if not moving:
        plan = replicas.agree_on(priced(model, plan))
        if pursued is not None:
            return Decision(plan, pursued.probe_loss, [*choosing, *judging])
        return Decision(
            plan, loss_before(model, batches, loss, replicas) if config.judged else float(report.loss), batches
        )
    if scores is None:
        scores = scores_of(moving)
    own = columns_of(scores)
    trial = try_step(
        model, plan, own, judging, config, before=scores.loss, loss=loss, replicas=replicas, growing=growing
    )
    plan = replicas.agree_on(priced(model, trial.paying(plan, config)))
    return Decision(plan, scores.probe_loss, [*choosing, *judging])
