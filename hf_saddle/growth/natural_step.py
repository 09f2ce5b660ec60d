"""How far units go at once, and what scores of held-out samples say that it does, for splits and new units alike."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.activations import ACT2FN

from ..curvature import Units, UnitScores, score_units
from ..curvature.loss import Loss
from ..models.modeling_saddle import GrowablePreTrainedModel
from .operators import OPERATORS
from .plan import GrowthPlan, LayerGrowth


# What is added to the diagonal of the Fisher information of the units, as a share of its mean.
RIDGE = 0.3
# The share of the natural step that is judged where units start at rest.
NEXT_STEP = 0.5


def moves(growth: LayerGrowth) -> bool:
    """Whether a growth has a natural step: splits, and units whose gains may be finite."""
    return growth.operator in OPERATORS and OPERATORS[growth.operator].scaled is not None


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
        if not moves(growth):
            raise ValueError(f"`{growth.operator}` of {growth.linear} has no natural step, so it cannot be scored.")
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


def scaled(scores: UnitScores) -> Tensor:
    """Scores at the largest coefficient of each unit, float64: in this scale a coefficient is at most 1."""
    return scores.values.double() * scores.largest.double()


@dataclass(frozen=True, eq=False)
class Judgement:
    """
    What held-out samples say of a step.

    Attributes:
        coefficients (`Tensor`): The step that was judged, as in [`UnitScores`], shape `(units,)`.
        slopes (`Tensor`): Decrease of the loss by each unit, to first order in the length of the step, `(units,)`.
        gain (`float`): Estimated decrease of the loss.
        error (`float`): Its standard error.
    """

    coefficients: Tensor
    slopes: Tensor
    gain: float
    error: float

    @property
    def slope(self) -> float:
        """Decrease of the loss to first order in the length of the step, exact up to the choice of samples."""
        return float(self.slopes.sum())

    def shares_of(self, gain: float) -> Tensor:
        """A decrease of the loss divided between the units, in proportion to their slopes, shape `(units,)`."""
        return self.slopes * (gain / self.slope if self.slope else 0.0)


def judge(scores: UnitScores, share: float) -> Judgement:
    """
    A share of the natural step, fitted to the samples that choose and judged on the others.

    The step `c = -(m E[u uᵀ] + ridge)⁻¹ E[u]` stays within the bounds of the coefficients. The loss of a sample
    changes by `d = Σ_j u_j c_j`, and the decrease is `-E[d + ½ m d²]`: to first order what the units do, less the
    empirical Fisher information for what they do to each other, with `m` the `terms` of the scores.

    Raises:
        ValueError: If there are fewer than two samples that judge.
    """
    values = scaled(scores)
    fitted, held_out = values[~scores.judges], values[scores.judges]
    if len(held_out) < 2:
        raise ValueError("A step is judged on samples that it was not fitted to: score the growths with `judging`.")
    step = share * _bounded_step(fitted, scores.splits, scores.terms)
    parts = held_out * step
    change = parts.sum(dim=1)
    decrease = -(change + 0.5 * scores.terms * change.square())
    return Judgement(
        coefficients=step * scores.largest.double(),
        slopes=-parts.mean(dim=0),
        gain=float(decrease.mean()),
        error=float(decrease.std() / len(decrease) ** 0.5),
    )


def _bounded_step(values: Tensor, splits: Tensor, terms: float) -> Tensor:
    """The natural step in `[-1, 1]`, of splits in `[0, 1]`; what meets a bound stays there, and the rest is solved."""
    fisher, slope = values.t() @ values * (terms / len(values)), values.mean(dim=0)
    fisher.diagonal().add_(RIDGE * fisher.diagonal().mean().clamp_min(torch.finfo(fisher.dtype).tiny))
    low = torch.where(splits, 0.0, -1.0).to(values)
    step, free = torch.zeros_like(slope), torch.ones_like(splits)
    while bool(free.any()):
        inner = fisher[free][:, free]
        step[free] = -torch.linalg.solve(inner, slope[free] + fisher[free][:, ~free] @ step[~free])
        beyond = free & ((step < low) | (step > 1))
        step = step.clamp(max=1).maximum(low)
        if not bool(beyond.any()):
            break
        free &= ~beyond
    return step


def supported(
    scores: UnitScores, order: Sequence[int], share: float, significance: float
) -> tuple[list[int], tuple[float, float, int] | None]:
    """
    As many of the units, in their order, as held-out samples gain most by; none where that gain is not significant.

    Args:
        scores ([`UnitScores`]): Of all units.
        order (`Sequence[int]`): Units, the best first.
        share (`float`): Share of the natural step.
        significance (`float`): Standard errors by which the gain must exceed 0.

    Returns:
        `tuple`: The units; and the decrease of the loss that is estimated for that many, its standard error, and their
        number, `None` where none was offered.
    """
    sizes, size = [], 1.0
    while round(size) < len(order):
        sizes.append(round(size))
        size = max(size * 1.2, size + 1)
    judged = [(judge(scores.of(order[:number]), share), number) for number in (*sizes, len(order)) if number]
    if not judged:
        return [], None
    best, number = max(judged, key=lambda found: found[0].gain)
    pays = best.gain > significance * best.error
    return list(order[:number]) if pays else [], (best.gain, best.error, number)


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
    found = judge(scores, share or NEXT_STEP)
    return stepped(plan, found, 1.0 if share else 0.0, found.gain)


def stepped(plan: GrowthPlan, found: Judgement, factor: float, gain: float) -> GrowthPlan:
    """
    A plan that takes a judged step times a factor.

    Args:
        plan ([`GrowthPlan`]): What is to grow, as it was scored.
        found ([`Judgement`]): The step.
        factor (`float`): Share of it. With 0 units stay at rest and splits keep their steps.
        gain (`float`): What is predicted.
    """
    coefficients, gains = found.coefficients.float().cpu() * factor, found.shares_of(gain).float().cpu()
    growths, start = [], 0
    for growth in plan.growths:
        if not moves(growth):
            growths.append(growth)
            continue
        own = slice(start, start + len(growth.neurons))
        start = own.stop
        step, share = coefficients[own], gains[own]
        if not factor:
            growths.append(replace(growth, predicted_gain=share))
        elif OPERATORS[growth.operator].scaled == "gains":
            growths.append(replace(growth, gains=step, predicted_gain=share))
        else:
            wanted = (step > 0).nonzero()[:, 0].tolist()
            if wanted:
                moved = replace(growth, steps=growth.steps * step.clamp_min(0).sqrt(), predicted_gain=share)
                growths.append(moved.of(wanted))
    return replace(plan, growths=tuple(growths), forecast="event" if factor else "next step")
