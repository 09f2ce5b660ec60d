"""How far splits and new units go at once: their scores, and plans that take a judged step."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from transformers.activations import ACT2FN

from ...curvature import Units, UnitScores, score_units
from ...curvature.loss import Loss
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..operators import NEURON_OPERATORS, OPERATORS, SCALED
from ..records.layer_growth import LayerGrowth
from ..records.plan import GrowthPlan
from .joint import Columns, Judgement, judge


# The share of the natural step that is judged where units start at rest.
NEXT_STEP = 0.5


def score_growths(
    model: GrowablePreTrainedModel,
    growths: Sequence[LayerGrowth],
    choosing: Iterable[Any],
    judging: Iterable[Any] = (),
    *,
    loss: Loss | None = None,
    distributed: bool = False,
    group: "dist.ProcessGroup | None" = None,
) -> UnitScores:
    """
    Score splits and zero-gain units of growths, by one forward and backward pass.

    Args:
        model ([`GrowablePreTrainedModel`]): The model before the growth.
        growths (`Sequence[LayerGrowth]`): What may grow, by operators that have a natural step.
        choosing (`Iterable`): The probe batches of this rank, those of the analysis.
        judging (`Iterable`, *optional*): Batches of other samples, see [`halves`].
        loss, distributed, group: As in [`score_units`].

    Returns:
        [`UnitScores`]: The units in the order of the growths and of their neurons.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    starts = torch.tensor([0, *(len(growth.neurons) for growth in growths)]).cumsum(0).tolist()
    for index, growth in enumerate(growths):
        if growth.operator not in NEURON_OPERATORS or growth.operator not in SCALED:
            raise ValueError(
                f"`{growth.operator}` of {growth.linear} has no natural step, or is of no neurons: it has no scores."
            )
        groups.setdefault((growth.linear, "depth" if OPERATORS[growth.operator].deepens else "width"), []).append(
            index
        )
    units, order = [], []
    for (linear, kind), members in groups.items():
        parts = [growths[index] for index in members]
        rows = torch.cat([part.directions * part.steps[:, None] for part in parts])
        neurons = torch.tensor([neuron for part in parts for neuron in part.neurons])
        units.append(Units(linear, kind, neurons, rows))
        order += [column for index in members for column in range(starts[index], starts[index + 1])]
    scores = score_units(
        model,
        choosing,
        units,
        ACT2FN[str(model.config.skip_activation)],
        judging=judging,
        loss=loss,
        distributed=distributed,
        group=group,
    )
    return scores.of(torch.tensor(order).argsort().tolist())


def columns_of(scores: UnitScores) -> Columns:
    """Scores of units at the largest coefficient of each: in this scale it is at most 1, of splits at least 0."""
    largest = scores.largest.double()
    high = torch.ones_like(largest)
    return Columns(
        scores.values.double() * largest,
        scores.judges,
        largest,
        torch.where(scores.splits, 0.0, -high),
        high,
        scores.terms,
    )


def take_natural_step(plan: GrowthPlan, scores: UnitScores, share: float) -> GrowthPlan:
    """
    Let a plan take a share of the natural step, and estimate from the scores of held-out samples what it will do.

    Args:
        plan ([`GrowthPlan`]): What is to grow.
        scores ([`UnitScores`]): Of its growths that have a natural step, see [`score_growths`].
        share (`float`): Share of the step. With 0 units stay at rest and splits keep their steps; what is predicted is
            then what the next half natural step would bring.

    Returns:
        [`GrowthPlan`]: The plan with gains, steps and predicted gains. Splits that the samples do not want are left
        out of it.
    """
    found = judge(columns_of(scores), share or NEXT_STEP)
    return stepped(plan, found, 1.0 if share else 0.0, found.gain, found.error)


def stepped(plan: GrowthPlan, found: Judgement, factor: float, gain: float, error: float | None = None) -> GrowthPlan:
    """
    A plan that takes a judged step times a factor.

    Args:
        plan ([`GrowthPlan`]): What is to grow, as it was scored.
        found ([`Judgement`]): The step.
        factor (`float`): Share of it. With 0 units stay at rest and splits keep their steps.
        gain (`float`): What is predicted.
        error (`float`, *optional*): Its standard error.
    """
    coefficients, gains = found.coefficients.float().cpu() * factor, found.shares_of(gain).float().cpu()
    growths, start = [], 0
    for growth in plan.growths:
        if growth.operator not in SCALED:
            growths.append(growth)
            continue
        own = slice(start, start + len(growth.neurons))
        start = own.stop
        step, share = coefficients[own], gains[own]
        if not factor:
            growths.append(replace(growth, predicted_gain=share))
        elif SCALED[growth.operator] == "gains":
            growths.append(replace(growth, gains=step, predicted_gain=share))
        else:
            wanted = (step > 0).nonzero()[:, 0].tolist()
            if wanted:
                moved = replace(growth, steps=growth.steps * step.clamp_min(0).sqrt(), predicted_gain=share)
                growths.append(moved.of(wanted))
    forecast = "event" if factor else "next step"
    return replace(plan, growths=tuple(growths), forecast=forecast, predicted_error=error)
