"""What a decision measures on all processes together: the curvature of neurons, and how far a step goes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers.activations import ACT2FN

from ...curvature import CurvatureReport, UnitScores, analyze_curvature
from ...curvature.loss import Loss
from ...curvature.samples import sample_count
from ...growth import GrowthConfig, GrowthPlan, LayerGrowth, candidate_growths, probe_loss, score_growths
from ...growth.choice.joint import Columns, Judgement, judge
from ...growth.choice.natural_step import NEXT_STEP, stepped
from ...growth.choice.reasons import unsupported
from ...growth.choice.trial import measured_step
from ...growth.operators import SCALED
from ...growth.surgery.grow import Growing, growing_
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
    resting = {growth.operator for growth in found if growth.operator not in SCALED}
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


class Trial(NamedTuple):
    """
    What a natural step came to when it was tried.

    Attributes:
        found ([`Judgement`]): The step.
        factor (`float`): The share of it that lowers the loss of the samples that judge most.
        gain (`float`): By how much.
        units (`int`): Number of units that take it.
    """

    found: Judgement
    factor: float
    gain: float
    units: int

    @property
    def error(self) -> float:
        """Standard error of the gain."""
        return self.found.error * self.factor

    def step(self, plan: GrowthPlan, config: GrowthConfig) -> GrowthPlan:
        """A plan that takes the step, as far as a config lets units move at once."""
        return stepped(plan, self.found, self.factor if config.natural_step else 0.0, self.gain, self.error)

    def paying(self, plan: GrowthPlan, config: GrowthConfig) -> GrowthPlan:
        """The same where it pays; else no growths, where units were to pay at once."""
        if self.gain > config.significance * self.error or not (config.natural_step or config.pursues):
            return self.step(plan, config)
        candidates = f"{sum(plan.candidates.values())} candidates"
        return replace(plan, growths=(), held_back=unsupported(self.gain, self.error, self.units, candidates, config))


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
) -> Trial:
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
        def measure() -> float:
            with growing(model, tried):
                return probe_loss(model, judging, loss)

        return _mean(judging, replicas, "Trying the growth", measure)

    step = measured_step(plan, found, before, loss_of)
    if is_compiled(model):
        # The trials count among the recompilations, after a few of which torch silently runs eagerly.
        torch.compiler.reset()
    return Trial(found, *step, units=len(columns.scale))


def loss_before(model: GrowablePreTrainedModel, batches: Sequence[Any], loss: Loss, replicas: Replicas) -> float:
    """The loss of a model that is about to grow, on the samples of all processes."""
    return _mean(batches, replicas, "The loss before the growth", lambda: probe_loss(model, batches, loss))


def loss_afterwards(model: GrowablePreTrainedModel, batches: Sequence[Any], loss: Loss, replicas: Replicas) -> float:
    """
    The loss of a model that has grown, on the samples of all processes.

    Raises:
        ValueError: If it is not finite on this process, upon which the growth is undone.
        RuntimeError: If that happened to another process.
    """

    def finite() -> float:
        value = probe_loss(model, batches, loss)
        if not math.isfinite(value):
            raise ValueError(
                f"The loss of the probe set is {value} after the growth, which was undone: the model is as before. "
                "Use a smaller `natural_step`."
            )
        return value

    return _mean(batches, replicas, "Measuring the grown model", finite)


def _mean(batches: Sequence[Any], replicas: Replicas, what: str, measure: Callable[[], float]) -> float:
    """The mean of what processes measure on their own batches, by their samples; some of several may have none."""
    own = replicas.together(what, lambda: measure() if batches or replicas.size == 1 else 0.0)
    return replicas.mean(own, sum(map(sample_count, batches)))
