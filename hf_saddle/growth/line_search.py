"""How far to go along the chosen directions, decided by the loss of the probe set."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..models.modeling_saddle import GrowablePreTrainedModel
from .plan import GrowthPlan, LayerGrowth
from .surgery import prepare_growth


FACTORS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125)


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

    One factor scales the steps of all splits and the gains of all zero-gain units (which start from
    `-sign(eigenvalue)` where the plan has 0). A plan of zero-gain units alone keeps the function where no factor
    lowers the loss. The trials are made in evaluation mode, and undone.

    Args:
        model ([`GrowablePreTrainedModel`]): The model; it is as before when this returns or raises.
        plan ([`GrowthPlan`]): What is to grow.
        batches (`Iterable`): The probe set. The leading dimension of the first tensor of a batch is its number of
        samples. loss (`Callable`, *optional*): Maps model and batch to the mean loss. Defaults to
        `model(**batch).loss`. factors (`Sequence[float]`, *optional*): What is tried.

    Returns:
        [`GrowthPlan`]: The plan with scaled steps, gains and predicted gains; the plan itself if nothing can be
        scaled.
    """
    if not any(growth.operator in _SCALE for growth in plan.growths):
        return plan
    kept = list(batches)
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
            values = batch.values() if isinstance(batch, Mapping) else batch
            count = len(next(value for value in values if isinstance(value, Tensor)))
            result = model(**batch).loss if loss is None else loss(model, batch)
            total, samples = total + float(result) * count, samples + count
    finally:
        model.train(training)
    return total / samples


def _scale_split(growth: LayerGrowth, factor: float) -> LayerGrowth:
    return replace(growth, steps=growth.steps * factor, predicted_gain=growth.predicted_gain * factor**2)


def _scale_gains(growth: LayerGrowth, factor: float) -> LayerGrowth:
    signs = torch.where(growth.gains == 0, -torch.sign(growth.eigenvalues), growth.gains)
    return replace(growth, gains=signs * factor, predicted_gain=growth.predicted_gain * factor)


_SCALE = {"split": _scale_split, "zero_gain": _scale_gains}


def _scaled(plan: GrowthPlan, factor: float) -> GrowthPlan:
    growths = [_SCALE[g.operator](g, factor) if g.operator in _SCALE else g for g in plan.growths]
    return replace(plan, growths=tuple(growths))
