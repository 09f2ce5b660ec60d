"""The control that differs in one thing: as many units in every linear as curvature asked for, of random neurons."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hf_saddle import CurvatureReport, analyze_curvature, grow_
from hf_saddle.curvature.loss import own_loss
from hf_saddle.growth import GrowthConfig, GrowthEvent, GrowthPlan, halves, probe_loss
from hf_saddle.growth.operators import OPERATORS
from hf_saddle.training.distributed import Replicas
from hf_saddle.training.events.decision import decide
from hf_saddle.training.events.moment import Moment
from hf_saddle.training.events.probe import event_seed
from hf_saddle.training.events.random_growth import stepped_at_random


def matched_event_(
    model: nn.Module, optimizer: Optimizer, batches: Sequence[Any], config: GrowthConfig, *, event: int, step: int
) -> GrowthEvent:
    """
    One event of the control.

    Curvature plans the event for the model as it is. Then the neurons of every linear and operator are replaced by
    random ones of the same linear, and their directions by random ones of the same size. Operators, numbers of units
    and the budget stay; the random units take the natural step that fits them.
    """
    seed = event_seed(config, event)
    replicas = Replicas.of(model)
    decision = decide(model, batches, config, Moment(event), loss=own_loss, replicas=replicas)
    choosing = halves(batches)[0] if config.judged else list(batches)
    report = analyze_curvature(
        model,
        choosing,
        "random",
        step_size=config.step_size,
        whiten=config.directions == "whitened",
        unit_activation=model.config.hidden_act,
        seed=seed,
    )
    plan = at_random(decision.plan, report, config, seed)
    plan = stepped_at_random(model, plan, batches, config, own_loss)
    done = grow_(model, plan, optimizer, step=step, loss_before=decision.loss_before)
    done.loss_after = probe_loss(model, decision.batches)
    return done


def at_random(plan: GrowthPlan, report: CurvatureReport, config: GrowthConfig, seed: int) -> GrowthPlan:
    """The same plan with random neurons of the same linears, along random directions; needs the criterion `random`."""
    generator = torch.Generator().manual_seed(seed)
    unused: dict[str, torch.Tensor] = {}  # a neuron grows by one operator in an event
    growths = []
    for growth in plan.growths:
        drawn, count = report[growth.linear, "random"], len(growth.neurons)
        order = unused.get(growth.linear, torch.randperm(drawn.neurons, generator=generator))
        neurons, unused[growth.linear] = order[:count].sort().values, order[count:]
        scale = 1.0 / drawn.response if OPERATORS[growth.operator].kind == "gain" else drawn.step
        growths.append(
            dataclasses.replace(
                growth,
                neurons=tuple(neurons.tolist()),
                directions=drawn.direction[neurons].float().cpu(),
                steps=scale[neurons].float().cpu(),
                predicted_gain=torch.zeros(count),
                eigenvalues=torch.zeros(count),
            )
        )
    return dataclasses.replace(plan, growths=tuple(growths))
