"""The control of growth by curvature: as many units of the same kind in the same places, of random neurons."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..curvature import CurvatureReport, analyze_curvature
from ..curvature.loss import Loss
from ..growth import (
    GrowthConfig,
    GrowthEvent,
    GrowthPlan,
    LayerGrowth,
    grow_,
    halves,
    probe_loss,
    record_,
    score_growths,
)
from ..growth.natural_step import moves, stepped
from ..growth.operators import OPERATORS
from ..growth.rows import find_site
from .decision import try_step
from .distributed import Replicas
from .model_checks import check_growable
from .probe import event_seed, private_randomness


def random_event_(
    model: nn.Module,
    optimizer: Optimizer | None,
    batches: Sequence[Any],
    config: GrowthConfig,
    like: GrowthEvent | None,
    *,
    event: int,
    loss: Loss,
    step: int | None = None,
    epoch: float | None = None,
) -> GrowthEvent:
    """
    One event that grows as many neurons of every linear, by the same operators, as another model's event, at random.

    The neurons are drawn without repetition, the directions are random and of the size that the operator asks for:
    units with a gain have pre-activations with a root mean square of 1 on the probe, as those that curvature chose.
    They move at once by the natural step that fits them, as those of the other model, which leaves out splits that
    would not lower the loss.

    Args:
        model (`nn.Module`): The model, of the shapes that the other one had before its event; in one process.
        optimizer (`Optimizer`, *optional*): What trains it.
        batches (`Sequence`): The probe batches.
        config ([`GrowthConfig`]): Gives the seed.
        like ([`GrowthEvent`], *optional*): The event of the other model; nothing grows if it is `None` or empty.
        event (`int`): Index of the event, from 0.
        loss (`Callable`): Maps model and batch to the mean loss.
        step, epoch (*optional*): For the record.

    Returns:
        [`GrowthEvent`]: The record, which is also the last event of the model's history.
    """
    inner, seed = check_growable(model), event_seed(config, event)
    layers = like.layers if like is not None else []
    with private_randomness(seed):
        report = None
        units = {layer["linear"] for layer in layers if OPERATORS[layer["operator"]].kind == "gain"}
        if units:
            report = analyze_curvature(inner, batches, ("random",), loss=loss, linears=sorted(units), seed=seed)
        plan = GrowthPlan(tuple(_at_random(inner, layers, report, seed)), criterion="random", seed=config.growth_seed)
        plan = _stepped(inner, plan, batches, config, loss)
        done = grow_(
            inner, plan, optimizer, step=step, epoch=epoch, loss_before=report.loss if report is not None else None
        )
        if plan:
            done.loss_after = probe_loss(inner, batches, loss)
            record_(inner, done)
    return done


def _stepped(model: Any, plan: GrowthPlan, batches: Sequence[Any], config: GrowthConfig, loss: Loss) -> GrowthPlan:
    moving = [growth for growth in plan.growths if moves(growth)]
    if not moving or not config.natural_step:
        return plan
    choosing, judging = halves(batches)
    scores = score_growths(model, moving, choosing, judging, loss=loss)
    found, factor, gain = try_step(model, plan, scores, judging, config, loss=loss, replicas=Replicas())
    return stepped(plan, found, factor, gain)


def _at_random(
    model: Any, layers: Sequence[dict[str, Any]], report: CurvatureReport | None, seed: int
) -> list[LayerGrowth]:
    generator = torch.Generator().manual_seed(seed % 2**63)
    unused: dict[str, list[int]] = {}  # a neuron grows by one operator in an event
    growths = []
    for layer in layers:
        path, operator, count = layer["linear"], layer["operator"], layer["chosen"]
        if path not in unused:
            size = find_site(model, path).module.neurons
            unused[path] = torch.randperm(size, generator=generator).tolist()
        neurons, unused[path] = sorted(unused[path][:count]), unused[path][count:]
        along: dict[str, Any] = {}
        drawn = report.get(path, "random") if report is not None else None
        if drawn is not None and OPERATORS[operator].kind == "gain":
            along = {"directions": drawn.direction[neurons].float(), "steps": 1.0 / drawn.response[neurons].float()}
        growths.append(LayerGrowth.by_hand(model, path, operator, neurons, seed=seed % 2**63, **along))
    return growths
