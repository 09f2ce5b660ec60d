"""What an event will do, decided by all processes together: measured, chosen, tried on samples that chose nothing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers.activations import ACT2FN

from ..curvature import CurvatureReport, UnitScores, analyze_curvature
from ..curvature.loss import Loss
from ..curvature.samples import sample_count
from ..growth import (
    GrowthConfig,
    GrowthPlan,
    LayerGrowth,
    block_candidates,
    candidate_growths,
    event_budget,
    plan_blocks,
    probe_loss,
    score_growths,
)
from ..growth.halves import halves
from ..growth.natural_step import NEXT_STEP, Judgement, judge, moves, stepped
from ..growth.planner import choose_growths, priced, sizes
from ..growth.reasons import no_budget, unsupported
from ..growth.trial import loss_of_plan, measured_step
from ..models.modeling_saddle import GrowablePreTrainedModel
from .distributed import Replicas
from .model_checks import growable_paths
from .probe import event_seed
from .wrappers import is_compiled


def decide(
    model: GrowablePreTrainedModel,
    batches: Sequence[Any],
    config: GrowthConfig,
    *,
    event: int,
    lr_ratio: float,
    to_come: int | None,
    loss: Loss,
    replicas: Replicas,
) -> tuple[GrowthPlan, float | None]:
    """
    The plan that all processes agree on, and the probe's loss before it; nothing is measured without a budget.

    Where units move at once, one half of the probe chooses them and their step, and the other half judges both: the
    predicted gain is what the loss of these samples fell by when the step was tried.
    """
    if event_budget(model, config, event, lr_ratio, to_come) <= 0:
        why = no_budget(*sizes(model, config), config, event)
        return GrowthPlan(criterion=config.criterion, budget=0.0, seed=config.growth_seed, held_back=why), None

    def measured_before() -> float:
        own = replicas.together("The loss before the growth", lambda: probe_loss(model, batches, loss))
        return replicas.mean(own, sum(map(sample_count, batches)))

    if config.inserts_blocks:
        how = config.operator.removeprefix("block_")
        candidates = block_candidates(model, batches, loss=loss, places=config.layers, how=how, ranks=replicas)
        plan = plan_blocks(candidates, model, config, event=event, lr_ratio=lr_ratio, to_come=to_come)
        return replicas.agree_on(plan), measured_before()
    choosing, judging = halves(batches, replicas) if config.judged else (list(batches), [])
    report = analyze_curvature(
        model,
        choosing,
        config.criteria,
        loss=loss,
        linears=growable_paths(model, config),
        step_size=config.step_size,
        whiten=config.directions == "whitened",
        significance=config.significance,
        unit_activation=ACT2FN[model.config.skip_activation],
        seed=event_seed(config, event),
        distributed=replicas.size > 1,
        group=replicas.group,
    )

    def scores_of(growths: Sequence[LayerGrowth]) -> UnitScores:
        several, group = replicas.size > 1, replicas.group
        return score_growths(model, growths, choosing, judging, loss=loss, distributed=several, group=group)

    def loss_before() -> float:
        # Of all samples at once, as the loss afterwards: a loss that is a mean over tokens is not one over halves.
        return measured_before() if config.judged else float(report.loss)

    offered = replicas.together("Looking for what may grow", lambda: _offered(report, model, config))
    pursued = scores_of(offered) if offered else None

    def choose() -> tuple[GrowthPlan, UnitScores | None]:
        return choose_growths(report, model, config, event=event, lr_ratio=lr_ratio, to_come=to_come, scores=pursued)

    plan, scores = replicas.together("Planning the growth", choose)
    plan = replicas.agree_on(plan)
    moving = [growth for growth in plan.growths if moves(growth)]
    if not moving:
        return replicas.agree_on(priced(model, plan)), loss_before()
    if scores is None:
        scores = scores_of(moving)
    found, factor, gain = try_step(model, plan, scores, judging, config, loss=loss, replicas=replicas)
    plan = replicas.agree_on(priced(model, _paying(plan, found, factor, gain, config)))
    return plan, loss_before()


def _offered(report: CurvatureReport, model: GrowablePreTrainedModel, config: GrowthConfig) -> Sequence[LayerGrowth]:
    """All that pursuit chooses from; nothing where neurons are ranked one by one."""
    found = candidate_growths(report, model, config) if config.pursues else ()
    resting = {growth.operator for growth in found if not moves(growth)}
    if resting and config.selection == "pursuit":
        raise ValueError(
            f"`selection='pursuit'` cannot choose `{resting.pop()}`, the kind of units that the model has: use "
            "`selection='gain'`, or merge its pairs after the last event."
        )
    # Where a model's own kind of units has no natural step, its neurons are ranked one by one.
    return () if resting else found


def try_step(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    scores: UnitScores,
    judging: Sequence[Any],
    config: GrowthConfig,
    *,
    loss: Loss,
    replicas: Replicas,
) -> tuple[Judgement, float, float]:
    """
    The natural step of a plan, the share of it that lowers the loss of the samples that judge, and by how much.

    Args:
        model ([`GrowablePreTrainedModel`]): The model, which is as before afterwards.
        plan ([`GrowthPlan`]): What is to grow.
        scores ([`UnitScores`]): Of its units that have a natural step.
        judging (`Sequence`): Batches of this process of the samples that judge.
        config ([`GrowthConfig`]): Which share of the natural step is tried; half of it if units stay at rest.
        loss (`Callable`): Maps model and batch to the mean loss.
        replicas ([`Replicas`]): The processes that train the model.
    """
    found = judge(scores, config.natural_step or NEXT_STEP)
    count = sum(map(sample_count, judging))

    def loss_of(trial: GrowthPlan) -> float:
        def measure() -> float:
            return loss_of_plan(model, trial, judging, loss) * count if count else 0.0

        sums = replicas.gather((replicas.together("Trying the growth", measure), count))
        return sum(total for total, _ in sums) / sum(samples for _, samples in sums)

    step = measured_step(plan, found, scores.loss, loss_of)
    if is_compiled(model):
        # The trials count among the recompilations, after a few of which torch silently runs eagerly.
        torch.compiler.reset()
    return found, *step


def _paying(plan: GrowthPlan, found: Judgement, factor: float, gain: float, config: GrowthConfig) -> GrowthPlan:
    """A plan with the step that was found and its gain; no growths where units were to pay at once and do not."""
    error = found.error * factor
    if gain > config.significance * error or not (config.natural_step or config.pursues):
        return stepped(plan, found, factor if config.natural_step else 0.0, gain, error)
    why = unsupported(gain, error, len(found.slopes), sum(plan.candidates.values()), config)
    return replace(plan, growths=(), held_back=why)
