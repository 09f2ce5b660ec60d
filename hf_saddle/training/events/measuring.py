"""What a decision measures on all processes together: the curvature of neurons, and how far a step goes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers.activations import ACT2FN

from ...curvature import CurvatureReport, UnitScores, analyze_curvature
from ...curvature.loss import Loss
from ...curvature.samples import sample_count
from ...growth import GrowthConfig, GrowthPlan, LayerGrowth, candidate_growths, probe_loss, score_growths
from ...growth.choice.joint import Columns, Judgement, judge
from ...growth.choice.natural_step import NEXT_STEP, moves
from ...growth.choice.trial import loss_of_plan, measured_step
from ...growth.surgery.temporary import Growing, growing_
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import growable_paths
from ..distributed import Replicas
from ..wrappers import is_compiled
from .probe import event_seed


def measure_neurons(
    model: GrowablePreTrainedModel,
    choosing: Sequence[Any],
    config: GrowthConfig,
    *,
    event: int,
    loss: Loss,
    replicas: Replicas,
) -> CurvatureReport:
    """The curvature of the neurons that may grow, on batches of this process of the samples that choose."""
    return analyze_curvature(
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


def candidates_of(
    report: CurvatureReport, model: GrowablePreTrainedModel, config: GrowthConfig
) -> Sequence[LayerGrowth]:
    """All that pursuit chooses from; nothing where neurons are ranked one by one."""
    found = candidate_growths(report, model, config) if config.pursues else ()
    resting = {growth.operator for growth in found if not moves(growth)}
    if resting and (config.selection == "pursuit" or config.kinds.several or config.budget_unit == "seconds"):
        raise ValueError(
            f"Pursuit cannot choose `{resting.pop()}`, the kind of units that the model has, which have no scores to "
            "compete by: use `selection='gain'` with an operator of neurons alone and a budget of parameters, merge "
            "the pairs, or name operators of width, heads and blocks only."
        )
    # Where a model's own kind of units has no natural step, its neurons are ranked one by one.
    return () if resting else found


def score_neurons(
    model: GrowablePreTrainedModel,
    growths: Sequence[LayerGrowth],
    choosing: Sequence[Any],
    judging: Sequence[Any],
    *,
    loss: Loss,
    replicas: Replicas,
) -> UnitScores:
    """[`score_growths`] on the samples of all processes."""
    several, group = replicas.size > 1, replicas.group
    return score_growths(model, growths, choosing, judging, loss=loss, distributed=several, group=group)


def try_step(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    columns: Columns,
    judging: Sequence[Any],
    config: GrowthConfig,
    *,
    before: float,
    loss: Loss,
    replicas: Replicas,
    entries: Sequence[int] | None = None,
    growing: Growing = growing_,
) -> tuple[Judgement, float, float]:
    """
    The natural step of a plan, the share of it that lowers the loss of the samples that judge, and by how much.

    Args:
        model ([`GrowablePreTrainedModel`]): The model, which is as before afterwards.
        plan ([`GrowthPlan`]): What is to grow.
        columns ([`Columns`]): The scores of what of it has a natural step, in the order of the plan unless there are
            `entries`.
        judging (`Sequence`): Batches of this process of the samples that judge.
        config ([`GrowthConfig`]): Which share of the natural step is tried; half of it if units stay at rest.
        before (`float`): Mean loss of the samples that judge.
        loss (`Callable`): Maps model and batch to the mean loss.
        replicas ([`Replicas`]): The processes that train the model.
        entries (`Sequence[int]`, *optional*): Which column each neuron or head of the plan that moves goes by.
        growing (`Callable`, *optional*): Lets the model be as a plan makes it, for a while.
    """
    found = judge(columns, config.natural_step or NEXT_STEP)
    if entries is not None:
        found = found.of(entries)

    def loss_of(tried: GrowthPlan) -> float:
        return judged_loss(judging, replicas, lambda batches: loss_of_plan(model, tried, batches, loss, growing))

    step = measured_step(plan, found, before, loss_of)
    if is_compiled(model):
        # The trials count among the recompilations, after a few of which torch silently runs eagerly.
        torch.compiler.reset()
    return found, *step


def judged_loss(judging: Sequence[Any], replicas: Replicas, measure: Any) -> float:
    """The mean of a loss over the samples that judge, of which a process may have none."""
    count = sum(map(sample_count, judging))
    own = replicas.together("Trying the growth", lambda: measure(judging) * count if count else 0.0)
    sums = replicas.gather((own, count))
    return sum(total for total, _ in sums) / sum(samples for _, samples in sums)


def loss_before(model: GrowablePreTrainedModel, batches: Sequence[Any], loss: Loss, replicas: Replicas) -> float:
    """The loss of a model that is about to grow, on the samples of all processes."""
    own = replicas.together("The loss before the growth", lambda: probe_loss(model, batches, loss))
    return replicas.mean(own, sum(map(sample_count, batches)))


def loss_afterwards(model: GrowablePreTrainedModel, batches: Sequence[Any], loss: Loss) -> float:
    """
    The loss of a model that has grown, on batches of this process.

    Raises:
        ValueError: If it is not finite, upon which the growth is undone.
    """
    value = probe_loss(model, batches, loss)
    if not math.isfinite(value):
        raise ValueError(
            f"The loss of the probe set is {value} after the growth, which was undone: the model is as before. "
            "Use a smaller `natural_step`."
        )
    return value
