"""Growth by a plan at hand, on a model as it is trained: wrapped, compiled, on one or many processes."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from ...curvature.loss import Loss, own_loss_of
from ...growth import GrowthEvent, GrowthPlan
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import check_growable
from ..distributed import Replicas
from .decision import Decision
from .event import carry_out_
from .measuring import loss_before
from .probe import private_randomness


def grow_by_plan_(
    model: nn.Module,
    optimizer: Optimizer | None,
    plan: GrowthPlan,
    batches: Sequence[Any],
    *,
    step: int | None = None,
    epoch: float | None = None,
    loss: Loss | None = None,
    group: "dist.ProcessGroup | None" = None,
    followers: Sequence[GrowablePreTrainedModel] = (),
) -> GrowthEvent:
    """
    Grow by a plan, as [`growth_event_`] does by its own: on all processes or on none, with the wrapper of DDP and that
    of `torch.compile` staying the same objects. All processes call it between two steps; that of the first decides.

    Args:
        model (`nn.Module`): The model as it is trained, that is, what `accelerator.prepare` returned.
        optimizer (`Optimizer` or `AcceleratedOptimizer`, *optional*): The optimizer that trains it.
        plan ([`GrowthPlan`]): What is to grow, such as [`plan_heads`] or `LayerGrowth.by_hand` make it.
        batches (`Sequence`): Probe batches of this process, on which the loss before and after is measured.
        step, epoch, loss, group, followers: See [`growth_event_`].

    Returns:
        [`GrowthEvent`]: The record, which is also the last event of the model's history.

    Raises:
        ValueError: If the model cannot grow so, the optimizer or the DDP wrapper was made for other parameters, or the
            loss would not be finite. The model is as before.
        RuntimeError: If the processes do not agree, or another one failed. No process has grown then.
    """
    inner, replicas = check_growable(model), Replicas.of(model) if group is None else Replicas(group)
    loss = loss or own_loss_of(inner, batches, replicas)

    with replicas.noting("growth by a plan"), private_randomness(plan.seed):
        return carry_out_(
            model,
            optimizer,
            lambda: at_hand(inner, plan, batches, loss, replicas),
            loss=loss,
            followers=followers,
            replicas=replicas,
            step=step,
            epoch=epoch,
        )


def at_hand(
    model: GrowablePreTrainedModel, plan: GrowthPlan, batches: Sequence[Any], loss: Loss, replicas: Replicas
) -> Decision:
    """The decision for a plan at hand, that of the first process, with the loss of the model as it is."""
    before = loss_before(model, batches, loss, replicas)
    return Decision(replicas.agree_on(plan), before, batches)
