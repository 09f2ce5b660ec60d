"""One growth event from probe to record, on a model as it is trained: wrapped, compiled, on one or many processes."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from ...curvature.loss import Loss, own_loss_of
from ...curvature.samples import sample_count
from ...growth import GrowthConfig, GrowthEvent, GrowthPlan, PreparedGrowth, prepare_growth, record_
from ...growth.records.timing_record import Timing
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import check_growable
from ..checks.optimizer_checks import check_bound
from ..distributed import Replicas
from ..wrappers import ddp_arguments, find_ddp, is_compiled, rebuild_ddp_
from .decision import Decision, decide
from .followers import adopt_history_, check_followers
from .measuring import loss_afterwards
from .moment import Moment
from .probe import event_seed, private_randomness


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
    inner, replicas = check_growable(model), Replicas.of(model) if group is None else Replicas(group)
    loss = loss or own_loss_of(inner, batches, replicas)

    def decision() -> Decision:
        return decide(
            inner,
            batches,
            config,
            Moment(event, lr_ratio, to_come, timing),
            loss=loss,
            replicas=replicas,
        )

    with replicas.noting(f"growth event {event}"), private_randomness(event_seed(config, event)):
        return carry_out_(
            model,
            optimizer,
            decision,
            loss=loss,
            followers=followers,
            replicas=replicas,
            step=step,
            epoch=epoch,
        )


def carry_out_(
    model: nn.Module,
    optimizer: Optimizer | None,
    decision: Callable[[], Decision],
    *,
    loss: Loss,
    followers: Sequence[GrowablePreTrainedModel],
    replicas: Replicas,
    **record: Any,
) -> GrowthEvent:
    """
    Check what follows the model, decide, grow and record, on all processes.

    Args:
        decision (`Callable`): Returns what all processes agree on.
        record: `step` and `epoch`.
        model, optimizer, loss, followers, replicas: See [`growth_event_`].

    Returns:
        [`GrowthEvent`]: The record, with all the time that this took.
    """
    started, inner = time.perf_counter(), check_growable(model)

    def check() -> None:
        check_bound(model, optimizer)
        check_followers(inner, followers)

    replicas.together("Checking what follows the model", check)
    replicas.check_same_model("model and optimizer before the growth", inner, optimizer)
    plan, before, batches = decision()
    done = grow_together_(
        model,
        plan,
        optimizer,
        batches,
        loss=loss,
        followers=followers,
        replicas=replicas,
        loss_before=before,
        **record,
    )
    if plan:
        replicas.check_same_model("model and optimizer after the growth", inner, optimizer)
    done.seconds = time.perf_counter() - started
    record_(inner, done)
    adopt_history_(inner, followers)
    return done


def grow_together_(
    model: nn.Module,
    plan: GrowthPlan,
    optimizer: Optimizer | None,
    batches: Sequence[Any],
    *,
    loss: Loss,
    followers: Sequence[GrowablePreTrainedModel],
    replicas: Replicas,
    **record: Any,
) -> GrowthEvent:
    """
    Grow on all processes or on none, measure the loss of the probe's samples, and make the wrappers follow.

    Raises:
        ValueError: If the grown model's loss is not finite on this process. No process has grown then.
        RuntimeError: If that happened to another process.
    """
    inner, wrapper = check_growable(model), find_ddp(model)

    def prepare() -> list[PreparedGrowth]:
        if wrapper is not None:
            ddp_arguments(wrapper)  # refuses what cannot follow
        adopt_history_(inner, followers)
        own = prepare_growth(inner, plan, optimizer, **record)
        return [own, *(prepare_growth(follower, plan, **record) for follower in followers)]

    prepared = replicas.together("The growth", prepare)
    event = prepared[0].event
    try:
        for each in prepared:
            each.commit_()
        if not plan:
            return event
        if is_compiled(model):
            # A limited number of recompilations is allowed, after which torch silently runs eagerly.
            torch.compiler.reset()
        own = replicas.together("Measuring the grown model", lambda: loss_afterwards(inner, batches, loss))
    except BaseException:
        for each in prepared:  # those that were not committed are as before anyway
            each.rollback_()
        raise
    event.loss_after = replicas.mean(own, sum(map(sample_count, batches)))
    if wrapper is not None:
        rebuild_ddp_(wrapper)
    return event
