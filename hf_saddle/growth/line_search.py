"""How far to go along the chosen directions, decided by the loss of the probe set."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..models.modeling_saddle import GrowablePreTrainedModel
from .plan import GrowthPlan, LayerGrowth, find_linear
from .surgery import prepare_growth


FACTORS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)


def line_search(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    batches: Iterable[Any],
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    factors: Sequence[float] = FACTORS,
) -> GrowthPlan:
    """
    Scale what a plan changes at once so that the loss of the probe set falls most.

    One factor scales the steps of all splits and the gains of all zero-gain units. Where the plan has the gain 0, the
    gains are a step of steepest descent: in proportion to the slope of the probe loss, measured by a backward pass. A
    plan of zero-gain units alone keeps the function where no factor lowers the loss. The trials are made in evaluation
    mode, and undone.

    Args:
        model ([`GrowablePreTrainedModel`]): The model; it is as before when this returns or raises.
        plan ([`GrowthPlan`]): What is to grow.
        batches (`Iterable`): The probe set. The leading dimension of the first tensor of a batch is its number of
            samples.
        loss (`Callable`, *optional*): Maps model and batch to the mean loss. Defaults to `model(**batch).loss`.
        factors (`Sequence[float]`, *optional*): What is tried.

    Returns:
        [`GrowthPlan`]: The plan with scaled steps, gains and predicted gains; the plan itself if nothing can be
        scaled.
    """
    if not any(growth.operator in ("split", "zero_gain") for growth in plan.growths):
        return plan
    kept = list(batches)
    plan = _downhill(model, plan, kept, loss)
    # With the factor 0 zero-gain units keep the function; splits would never separate.
    trials = [_scaled(plan, factor) for factor in factors]
    if all(growth.operator != "split" for growth in plan.growths):
        trials.append(_scaled(plan, 0.0))
    losses = []
    for trial in trials:
        # On the model itself, which is exact to undo: a copy would carry along what wraps the forward of the original.
        prepared = prepare_growth(model, trial)
        prepared.commit_()
        try:
            losses.append(probe_loss(model, kept, loss))
        finally:
            prepared.rollback_()
    best = min(range(len(trials)), key=lambda index: losses[index] if math.isfinite(losses[index]) else math.inf)
    return trials[best]


@torch.no_grad()
def probe_loss(
    model: GrowablePreTrainedModel, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor] | None = None
) -> float:
    """Mean loss over the samples of all batches, in evaluation mode; the model's mode is restored."""
    training, total, samples = model.training, 0.0, 0
    model.eval()
    try:
        for batch in batches:
            count = _size(batch)
            total, samples = total + float(_loss(model, batch, loss)) * count, samples + count
    finally:
        model.train(training)
    return total / samples


def _downhill(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor] | None,
) -> GrowthPlan:
    """The plan with gains against the slope of the loss, the largest being 1, where it has zero-gain units at rest."""
    at_rest = [g for g in plan.growths if g.operator == "zero_gain" and not bool(g.gains.any())]
    if not at_rest:
        return plan
    prepared = prepare_growth(model, replace(plan, growths=tuple(at_rest)))
    prepared.commit_()
    try:
        # Nothing else grows in this trial, so the new units are the last of their branch.
        gains = [find_linear(model, growth.linear).skip.gain for growth in at_rest]
        gradients = _gradients(model, gains, batches, loss)
    finally:
        prepared.rollback_()
    slopes = {
        growth.linear: gradient[-len(growth.neurons) :].float().cpu()
        for growth, gradient in zip(at_rest, gradients, strict=True)
    }
    largest = max(float(slope.abs().max()) for slope in slopes.values())
    if not 0 < largest < math.inf:
        return plan

    def started(growth: LayerGrowth) -> LayerGrowth:
        slope = slopes[growth.linear]
        return replace(growth, gains=-slope / largest, predicted_gain=slope.square() / largest)

    return replace(plan, growths=tuple(started(g) if g in at_rest else g for g in plan.growths))


def _gradients(
    model: GrowablePreTrainedModel,
    parameters: Sequence[Tensor],
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor] | None,
) -> list[Tensor]:
    """Gradients of the summed loss of all samples, in evaluation mode; `.grad` is not touched."""
    training, total = model.training, [torch.zeros_like(parameter) for parameter in parameters]
    model.eval()
    try:
        with torch.enable_grad():
            for batch in batches:
                value = _loss(model, batch, loss) * _size(batch)
                for part, gradient in zip(total, torch.autograd.grad(value, parameters), strict=True):
                    part += gradient
    finally:
        model.train(training)
    return [part / sum(_size(batch) for batch in batches) for part in total]


def _loss(model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], Tensor] | None) -> Tensor:
    return model(**batch).loss if loss is None else loss(model, batch)


def _size(batch: Any) -> int:
    values = batch.values() if isinstance(batch, Mapping) else batch
    return len(next(value for value in values if isinstance(value, Tensor)))


def _scaled(plan: GrowthPlan, factor: float) -> GrowthPlan:
    return replace(plan, growths=tuple(_scaled_layer(growth, factor) for growth in plan.growths))


def _scaled_layer(growth: LayerGrowth, factor: float) -> LayerGrowth:
    if growth.operator == "split":
        return replace(growth, steps=growth.steps * factor, predicted_gain=growth.predicted_gain * factor**2)
    if growth.operator == "zero_gain":
        return replace(growth, gains=growth.gains * factor, predicted_gain=growth.predicted_gain * factor)
    return growth
