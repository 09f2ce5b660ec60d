"""Growth events for hand-written loops: measured and planned, by a plan at hand, or planned only."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from ...curvature.loss import Loss, own_loss_of
from ...growth import GrowthConfig, GrowthEvent, GrowthPlan
from ...growth.records.timing_record import Timing
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import check_growable
from ..distributed import Replicas
from .carry_out import carry_out_
from .decision import decide
from .followers import adopt_history_
from .moment import Moment
from .probe import event_seed, private_randomness
from .whole import Whole


def growth_event_(
    model: nn.Module,
    optimizer: Optimizer | None,
    batches: Sequence[Any],
    config: GrowthConfig,
    *,
    event: int = 0,
    step: int | None = None,
    epoch: float | None = None,
    lr_ratio: float = 1.0,
    to_come: int | None = None,
    loss: Loss | None = None,
    group: "dist.ProcessGroup | None" = None,
    followers: Sequence[GrowablePreTrainedModel] = (),
    timing: Timing | None = None,
) -> GrowthEvent:
    """
    Measure, plan and grow, as [`GrowthCallback`] does; for hand-written loops.

    Call it on all processes between two steps, after `optimizer.step()` and `optimizer.zero_grad()`. The wrapper of
    DDP and that of `torch.compile` stay the same objects. Parameters' gradients, the random generators and the modes
    of modules are not touched, so that an event without growth leaves no trace but its record.

    Args:
        model (`nn.Module`): The model as it is trained, that is, what `accelerator.prepare` returned.
        optimizer (`Optimizer` or `AcceleratedOptimizer`, *optional*): The optimizer that trains it.
        batches (`Sequence`): The probe batches of this process, see [`probe_batches`].
        config ([`GrowthConfig`]): Where, how and how much to grow.
        event (`int`, *optional*, defaults to 0): Index of the event, from 0.
        step (`int`, *optional*): Training step, for the record.
        epoch (`float`, *optional*): Epoch, for the record.
        lr_ratio (`float`, *optional*, defaults to 1.0): Learning rate relative to its peak, for `schedule="lr"`.
        to_come (`int`, *optional*): Events that the training still has room for, this one included, which share what
            is left of the size. Defaults to all that `config` asks for.
        loss (`Callable`, *optional*): Maps model and batch to the mean loss; the loss of the training. Defaults to
            `model(**batch).loss`, of models that predict tokens such that it is a mean over all tokens with a label.
        group (`torch.distributed.ProcessGroup`, *optional*): The processes that train the model. Defaults to those of
            its DDP wrapper.
        followers (`Sequence`, *optional*): Models of the same shapes that grow by the same plan, such as the
            `module` of a `torch.optim.swa_utils.AveragedModel`; if one cannot grow, nothing does.
        timing (`Timing`, *optional*): What growth takes where seconds limit the size, by [`time_growth`]. By default
            the first event measures it.

    Returns:
        [`GrowthEvent`]: The record, which is also the last event of the model's history. `seconds` is all that the
        event took.

    Raises:
        ValueError: If the model cannot grow (see [`check_growable`]), nothing can be measured, the optimizer or the
            DDP wrapper was made for other parameters, or the loss would not be finite. The model is as before.
        RuntimeError: If the processes do not agree, or another one failed. No process has grown then.
    """
    whole, moment = Whole(model, optimizer, followers, group), Moment(event, lr_ratio, to_come, timing)
    done = carry_out_(whole, batches, config, moment, loss, step=step, epoch=epoch)
    adopt_history_(whole.model, followers)
    return done


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
    whole = Whole(model, optimizer, followers, group)
    done = carry_out_(whole, batches, plan, Moment(), loss, step=step, epoch=epoch)
    adopt_history_(whole.model, followers)
    return done


def plan_event(
    model: nn.Module,
    batches: Sequence[Any],
    config: GrowthConfig,
    *,
    event: int = 0,
    lr_ratio: float = 1.0,
    to_come: int | None = None,
    loss: Loss | None = None,
) -> GrowthPlan:
    """
    Plan an event as [`growth_event_`] does, and leave the model as it is. With the same arguments both do the same.

    Args:
        model (`nn.Module`): The model, in one process.
        batches (`Sequence`): The probe batches, see [`probe_batches`].
        config ([`GrowthConfig`]): Where, how and how much to grow.
        event, lr_ratio, to_come, loss: See [`growth_event_`].

    Returns:
        [`GrowthPlan`]: What would grow, and what that is predicted to do to the loss (`predicted_gain` ±
        `predicted_error`); an empty one says in `held_back` why nothing would. [`grow_`] carries it out.

    Raises:
        ValueError: If the model cannot grow, or nothing can be measured.
    """
    inner, alone = check_growable(model), Replicas()
    with private_randomness(event_seed(config, event)):
        decision = decide(
            inner,
            batches,
            config,
            Moment(event, lr_ratio, to_come),
            loss=loss or own_loss_of(inner, batches, alone),
            replicas=alone,
        )
    return decision.plan
