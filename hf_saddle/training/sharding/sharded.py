"""Growth of a model that FSDP2 (`fully_shard`) has sharded: the probe runs sharded, the growth by blocks."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from ...curvature.heads import check_sharding
from ...curvature.loss import Loss, own_loss_of
from ...curvature.samples import sample_count
from ...growth import GrowthConfig, GrowthEvent, GrowthPlan, record_
from ...growth.optimizer.state import inner_optimizer
from ...growth.surgery.attachments import check_attachments
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import growable_inside, growing_kinds, heads_that_grow
from ..checks.optimizer_checks import check_optimizer
from ..checks.shard_checks import check_new_blocks, check_shards, check_states
from ..distributed import Replicas
from ..events.decision import Decision, decide
from ..events.measuring import loss_afterwards
from ..events.moment import Moment
from ..events.planned import at_hand
from ..events.probe import event_seed, private_randomness
from .resharding import show_shards_
from .sharded_growth import grow_sharded_, growing_sharded_


def growth_event_sharded_(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Any],
    config: GrowthConfig,
    *,
    shard: Callable[[nn.Module], Any],
    group: "dist.ProcessGroup | None" = None,
    event: int = 0,
    step: int | None = None,
    epoch: float | None = None,
    lr_ratio: float = 1.0,
    to_come: int | None = None,
    loss: Loss | None = None,
) -> tuple[nn.Module, GrowthEvent]:
    """
    As [`growth_event_`], for a model that is sharded by FSDP2.

    The probe runs sharded, as the training does. Then the sharding is taken back, the blocks that grow are gathered
    one after the other, and the model is sharded anew. Beyond what a step needs, a process holds one block with its
    part of the optimizer's state, whole, before and after its growth, and its shards of all grown parameters twice.
    Model, modules and optimizer stay the same objects; schedulers need nothing.

    Args:
        model (`nn.Module`): The sharded model.
        optimizer (`Optimizer` or `AcceleratedOptimizer`): The optimizer that trains it.
        batches (`Sequence`):
            The probe batches of this process, see [`probe_batches`]; as many on each process, because all of them
            gather the parameters of a layer together.
        config ([`GrowthConfig`]): Where, how and how much to grow; not within seconds.
        shard (`Callable`):
            Shards a model in place, as it was done before the training, with all that was set on its sharded modules.
        group (`torch.distributed.ProcessGroup`, *optional*): The processes; by default all.
        event, step, epoch, lr_ratio, to_come, loss: See [`growth_event_`].

    Returns:
        `tuple[nn.Module, GrowthEvent]`: The model, which is the given one, and the record.

    Raises:
        ValueError: If the model is not sharded or cannot grow.
        RuntimeError: If the processes do not agree, or another one failed. Nothing has changed then.
    """
    inner, replicas = _inside(model), Replicas(dist.group.WORLD if group is None else group)
    loss = loss or own_loss_of(inner, batches, replicas)
    growing: dict[str, Any] = {"shard": shard, "replicas": replicas}

    def decision() -> Decision:
        check_batches(replicas.gather([sample_count(batch) for batch in batches]), config)
        return decide(
            inner,
            batches,
            config,
            Moment(event, lr_ratio, to_come),
            loss=loss,
            replicas=replicas,
            growing=partial(growing_sharded_, **growing),
        )

    with replicas.noting(f"growth event {event}"), private_randomness(event_seed(config, event)):
        done = _carry_out_(
            inner,
            optimizer,
            decision,
            lambda: check_sharded(inner, optimizer, config),
            loss=loss,
            step=step,
            epoch=epoch,
            **growing,
        )
    return model, done


def grow_by_plan_sharded_(
    model: nn.Module,
    optimizer: Optimizer,
    plan: GrowthPlan,
    batches: Sequence[Any],
    *,
    shard: Callable[[nn.Module], Any],
    group: "dist.ProcessGroup | None" = None,
    step: int | None = None,
    epoch: float | None = None,
    loss: Loss | None = None,
) -> tuple[nn.Module, GrowthEvent]:
    """
    As [`grow_by_plan_`], for a model that is sharded by FSDP2.

    Args:
        model, optimizer, shard, group: See [`growth_event_sharded_`].
        plan ([`GrowthPlan`]): What is to grow; that of the first process decides. [`head_growth`] makes heads of a
            sharded model, on all processes together.
        batches (`Sequence`): Probe batches of this process, on which the loss before and after is measured; as many
            on each process.
        step, epoch, loss: See [`growth_event_`].

    Returns:
        `tuple[nn.Module, GrowthEvent]`: The model, which is the given one, and the record.

    Raises:
        ValueError: If the model is not sharded or cannot grow so.
        RuntimeError: If the processes do not agree, or another one failed. Nothing has changed then.
    """
    inner, replicas = _inside(model), Replicas(dist.group.WORLD if group is None else group)
    loss = loss or own_loss_of(inner, batches, replicas)

    def decision() -> Decision:
        check_batches(replicas.gather([sample_count(batch) for batch in batches]))
        return at_hand(inner, plan, batches, loss, replicas)

    with replicas.noting("growth by a plan"), private_randomness(plan.seed):
        done = _carry_out_(
            inner,
            optimizer,
            decision,
            lambda: _check_taking(inner, optimizer),
            loss=loss,
            shard=shard,
            replicas=replicas,
            step=step,
            epoch=epoch,
        )
    return model, done


def _inside(model: nn.Module) -> GrowablePreTrainedModel:
    """The growable model that FSDP2 has sharded."""
    if not isinstance(model, FSDPModule) or not isinstance(model, GrowablePreTrainedModel):
        raise ValueError(f"Only Saddle models that FSDP2 has sharded are meant, got a {type(model).__name__}.")
    return growable_inside(model)


def _carry_out_(
    model: GrowablePreTrainedModel,
    optimizer: Optimizer,
    decision: Callable[[], Decision],
    check: Callable[[], None],
    *,
    loss: Loss,
    shard: Callable[[nn.Module], Any],
    replicas: Replicas,
    **record: Any,
) -> GrowthEvent:
    """Check, decide, grow and record, on all processes."""
    started = time.perf_counter()
    replicas.together("Checking what follows the model", check)
    plan, before, measured = decision()
    done, undo = grow_sharded_(model, plan, optimizer, shard=shard, replicas=replicas, loss_before=before, **record)
    if plan:
        try:
            own = replicas.together("Measuring the grown model", lambda: loss_afterwards(model, measured, loss))
        except BaseException:
            undo()
            raise
        done.loss_after = replicas.mean(own, sum(map(sample_count, measured)))
        show_shards_(model)
    done.seconds = time.perf_counter() - started
    record_(model, done)
    return done


def check_sharded(model: GrowablePreTrainedModel, optimizer: Optimizer, config: GrowthConfig) -> None:
    """
    Verify that a sharded model may grow as a config asks for, and its optimizer with it.

    Raises:
        ValueError: If not; the message names the remedy.
    """
    if config.budget_unit == "seconds":
        raise ValueError("Sharded growth is not timed: use `budget_unit='macs'` or `'parameters'`.")
    kinds = growing_kinds(model, config)
    if kinds.heads:
        headed = heads_that_grow(model, config)
        check_sharding(attention for attention in model.attentions() if attention.path in headed)
    _check_taking(model, optimizer)
    if kinds.blocks is not None:
        check_new_blocks(inner_optimizer(optimizer))


def _check_taking(model: GrowablePreTrainedModel, optimizer: Optimizer) -> None:
    """Raise a `ValueError` unless a sharded model can be taken apart and put together, with its optimizer."""
    show_shards_(model)
    check_attachments(model, {site.path for site in model.growable_linears()})
    check_optimizer(model, optimizer)
    check_shards(model)
    check_states(model, inner_optimizer(optimizer))


def check_batches(sizes: Sequence[Sequence[int]], config: GrowthConfig | None = None) -> None:
    """
    Verify that all processes compute in as many batches, of the probe and of both of its halves.

    Args:
        sizes (`Sequence[Sequence[int]]`): Samples of each batch, for each process.
        config ([`GrowthConfig`], *optional*): Whether the probe is halved; it is not if `None`.

    Raises:
        ValueError: If not.
    """
    counts = list(map(len, sizes))
    if len(set(counts)) > 1:
        raise ValueError(
            f"The ranks have {counts} probe batches. A sharded model computes on all ranks or on none: choose "
            f"`probe_samples` a multiple of the {len(counts)} processes."
        )
    if config is not None and config.judged and 1 in {size for own in sizes for size in own}:
        raise ValueError(
            "A probe batch of one sample cannot be halved, and a sharded model computes on all ranks or on none: "
            f"choose `probe_samples` a multiple of {len(counts)} processes times `probe_batch_size`, which is at "
            "least 2."
        )
