"""What follows a growth: new parameters with a learning rate of their own, and plans that are tried by training."""

import copy
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hf_saddle import grow_
from hf_saddle.growth import GrowthConfig, GrowthEvent, GrowthPlan, probe_loss
from hf_saddle.training import plan_event


# What may grow, by what changes in the config: by its options, or splits alone, as many as there may be.
CANDIDATES: tuple[dict[str, Any], ...] = (
    {},
    {"criterion": "width", "selection": "gain", "significance": 0.0, "natural_step": 0.0},
)


def own_rate_(model: nn.Module, optimizer: Optimizer, known: Container[str], factor: float) -> None:
    """Parameters whose names are not `known` move to groups whose learning rate is `factor` times that of theirs."""
    new = {parameter for name, parameter in model.named_parameters() if name not in known}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if parameter in new]
        if moved and "factor" not in group:
            group["params"] = [parameter for parameter in group["params"] if parameter not in new]
            optimizer.add_param_group(group | {"params": moved, "factor": factor})


def tried_event_(
    model: Any,
    optimizer: Optimizer,
    batches: Sequence[Any],
    config: GrowthConfig,
    *,
    event: int,
    step: int,
    train_: Callable[[Any, Optimizer], None],
    judges: Sequence[Any],
) -> GrowthEvent:
    """
    The plan of which a copy of the model has the lowest loss on `judges` after a short training, or none
    (landscape-aware growing, arXiv 2406.02469). The model goes on from the growth itself, without that training.
    """
    plans = [plan_event(model, batches, replace(config, **fields), event=event) for fields in CANDIDATES]
    losses = []
    for plan in (tried := [GrowthPlan(seed=config.growth_seed), *filter(None, plans)]):
        twin, own = copy.deepcopy((model, optimizer))
        grow_(twin, plan, own)
        train_(twin, own)
        losses.append(probe_loss(twin, judges))
    plan = tried[losses.index(min(losses))]
    done = grow_(model, plan, optimizer, step=step, loss_before=probe_loss(model, batches))
    done.loss_after = probe_loss(model, batches)
    return done
