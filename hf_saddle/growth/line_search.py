"""How far to go along the chosen directions, decided by the loss of the probe set."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature.loss import Loss, own_loss
from ..curvature.samples import sample_count
from ..models.modeling_saddle import GrowablePreTrainedModel
from .operators import OPERATORS, slope_at_zero
from .plan import GrowthPlan, LayerGrowth
from .rows import find_site
from .surgery import prepare_growth


FACTORS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)


def line_search(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    factors: Sequence[float] = FACTORS,
) -> GrowthPlan:
    """
    Scale what a plan changes at once so that the loss of the probe set falls most.

    One factor scales the steps of all splits and the gains of all zero-gain units. Where the plan has the gain 0, the
    gains are a step of steepest descent: in proportion to the slope of the probe loss, measured by a backward pass, of
    all that a gain changes. A plan of zero-gain units alone keeps the function where no factor lowers the loss. The
    trials are made in evaluation mode, and undone.

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

    Raises:
        ValueError: If the probe set is empty, or no factor gives a finite loss.
    """
    scaled = {OPERATORS[growth.operator].scaled for growth in plan.growths}
    if scaled <= {None}:
        return plan
    loss, kept = loss or own_loss, list(batches)
    plan = _downhill(model, plan, kept, loss)
    # With the factor 0 zero-gain units keep the function; splits would never separate.
    trials = [_scaled(plan, factor) for factor in factors]
    if "steps" not in scaled:
        trials.append(_scaled(plan, 0.0))
    losses = []
    for trial in trials:
        with _grown(model, trial):
            losses.append(probe_loss(model, kept, loss))
    finite = [index for index, value in enumerate(losses) if math.isfinite(value)]
    if not finite:
        raise ValueError(
            f"The loss of the probe set is {losses[-1]} at every factor of the line search. Check the batches and the "
            "model before growing it."
        )
    return trials[min(finite, key=lambda index: losses[index])]


@torch.no_grad()
def probe_loss(model: GrowablePreTrainedModel, batches: Iterable[Any], loss: Loss | None = None) -> float:
    """
    Mean loss over the samples of all batches, in evaluation mode; the model's mode is restored.

    Raises:
        ValueError: If there is no sample.
    """
    loss = loss or own_loss
    training, total, samples = model.training, 0.0, 0
    model.eval()
    try:
        for batch in batches:
            count = sample_count(batch)
            total, samples = total + float(loss(model, batch)) * count, samples + count
    finally:
        model.train(training)
    if not samples:
        raise ValueError("The probe set is empty: none of its batches holds a sample.")
    return total / samples


@contextmanager
def _grown(model: GrowablePreTrainedModel, plan: GrowthPlan) -> Iterator[None]:
    """The model itself as a plan makes it: a copy would carry along what wraps the forward of the original."""
    prepared = prepare_growth(model, plan)
    prepared.commit_()
    try:
        yield
    finally:
        prepared.rollback_()


def _downhill(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    batches: Sequence[Any],
    loss: Loss,
) -> GrowthPlan:
    """The plan with gains against the slope of the loss, the largest being 1, where it has zero-gain units at rest."""
    at_rest = [g for g in plan.growths if OPERATORS[g.operator].scaled == "gains" and not bool(g.gains.any())]
    if not at_rest:
        return plan
    with _grown(model, replace(plan, growths=tuple(at_rest))):
        modules = {growth.linear: find_site(model, growth.linear).module for growth in at_rest}
        moving: dict[str, list[nn.Parameter]] = {}
        for path, module in modules.items():
            assert module.skip is not None and module.skip.gain is not None
            moving[path] = [module.skip.gain, *module.parameters(recurse=False)]
        gradients = _gradients(model, [tensor for tensors in moving.values() for tensor in tensors], batches, loss)
    slope_of_unit = slope_at_zero(str(model.config.skip_activation))
    slopes: dict[LayerGrowth, Tensor] = {}
    for path, tensors in moving.items():
        by_gain, by_weight, *by_bias = (gradients.pop(0).cpu() for _ in tensors)
        by_weight = modules[path].layout.matrix(by_weight)
        # Nothing else grows in this trial, so the new units are the last of their branch, in the order of the plan.
        members = [growth for growth in at_rest if growth.linear == path]
        sizes = [len(growth.neurons) for growth in members]
        for growth, slope in zip(members, torch.split(by_gain[-sum(sizes) :], sizes), strict=True):
            # What a gain adds to first order in the unit's row, the neuron's own row takes back, see `LayerGrowth`.
            rows, neurons = growth.directions * growth.steps[:, None], list(growth.neurons)
            taken = (rows[:, :-1] * by_weight[neurons]).sum(dim=1)
            for bias in by_bias:
                taken = taken + rows[:, -1] * bias[neurons]
            slopes[growth] = (slope - slope_of_unit * taken).float()
    largest = max(float(slope.abs().max()) for slope in slopes.values())
    if not 0 < largest < math.inf:
        return plan

    def started(growth: LayerGrowth) -> LayerGrowth:
        slope = slopes[growth]
        return replace(growth, gains=-slope / largest, predicted_gain=slope.square() / largest)

    return replace(plan, growths=tuple(started(g) if g in slopes else g for g in plan.growths))


def _gradients(
    model: GrowablePreTrainedModel,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Any],
    loss: Loss,
) -> list[Tensor]:
    """Gradients of the mean loss of all samples, in evaluation mode; `.grad` is not touched."""
    training, samples = model.training, 0
    total = [torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32)) for value in parameters]
    frozen = [value for value in parameters if not value.requires_grad]
    model.eval()
    try:
        for value in frozen:
            value.requires_grad_(True)
        with torch.enable_grad():
            for batch in batches:
                size = sample_count(batch)
                gradients = torch.autograd.grad(loss(model, batch), parameters)
                for part, gradient in zip(total, gradients, strict=True):
                    part.add_(gradient, alpha=size)
                samples += size
    finally:
        for value in frozen:
            value.requires_grad_(False)
        model.train(training)
    return [part / samples for part in total]


def _scaled(plan: GrowthPlan, factor: float) -> GrowthPlan:
    return replace(plan, growths=tuple(_scaled_layer(growth, factor) for growth in plan.growths))


def _scaled_layer(growth: LayerGrowth, factor: float) -> LayerGrowth:
    scaled = OPERATORS[growth.operator].scaled
    if scaled == "steps":
        return replace(growth, steps=growth.steps * factor, predicted_gain=growth.predicted_gain * factor**2)
    if scaled == "gains":
        return replace(growth, gains=growth.gains * factor, predicted_gain=growth.predicted_gain * factor)
    return growth
