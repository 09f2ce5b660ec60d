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

from .baselines import carried_out_


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
    candidates: Sequence[dict[str, Any]],
    train_: Callable[[Any, Optimizer], None],
    judges: Sequence[Any],
) -> GrowthEvent:
    """
    Of the plans by configs with these fields, and none, that of which a copy of the model has the lowest loss on
    `judges` after a short training (landscape-aware growing, arXiv 2406.02469). The model goes on from the growth
    itself, without that training.
    """
    plans = [plan_event(model, batches, replace(config, **fields), event=event) for fields in candidates]
    losses = []
    for plan in (tried := [GrowthPlan(seed=config.growth_seed), *filter(None, plans)]):
        twin, own = copy.deepcopy((model, optimizer))
        grow_(twin, plan, own)
        train_(twin, own)
        losses.append(probe_loss(twin, judges))
    return carried_out_(model, tried[losses.index(min(losses))], optimizer, batches, step)
