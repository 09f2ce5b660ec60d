"""One growth event of a model that FSDP2 (`fully_shard`) has sharded: the probe runs sharded, the growth by blocks."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from ...curvature.loss import Loss, own_loss_of
from ...curvature.samples import sample_count
from ...growth import GrowthConfig, GrowthEvent, record_
from ...growth.optimizer.state import inner_optimizer
from ...growth.surgery.attachments import check_attachments
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import growable_inside
from ..checks.optimizer_checks import check_optimizer
from ..checks.shard_checks import GROW_ALONE, check_shards, check_states
from ..distributed import Replicas
from ..events.decision import decide
from ..events.measuring import loss_afterwards
from ..events.moment import Moment
from ..events.probe import event_seed, private_randomness
from .resharding import show_shards_
from .sharded_growth import grow_sharded_, loss_of_sharded_plan


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
        config ([`GrowthConfig`]): Where, how and how much to grow; neurons only.
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
    started = time.perf_counter()
    if not isinstance(model, FSDPModule) or not isinstance(model, GrowablePreTrainedModel):
        raise ValueError(f"Only Saddle models that FSDP2 has sharded are meant, got a {type(model).__name__}.")
    inner, replicas = growable_inside(model), Replicas(dist.group.WORLD if group is None else group)
    loss = loss or own_loss_of(inner, batches, replicas)
    with replicas.noting(f"growth event {event}"), private_randomness(event_seed(config, event)):

        def check() -> None:
            check_sharded(inner, optimizer, config)

        replicas.together("Checking what follows the model", check)
        check_batches(replicas.gather([sample_count(batch) for batch in batches]), config)
        growing: dict[str, Any] = {"shard": shard, "replicas": replicas}
        plan, loss_before, measured = decide(
            inner,
            batches,
            config,
            Moment(event, lr_ratio, to_come),
            loss=loss,
            replicas=replicas,
            trial=partial(loss_of_sharded_plan, **growing),
        )
        show_shards_(model)
        done, undo = grow_sharded_(inner, plan, optimizer, step=step, epoch=epoch, loss_before=loss_before, **growing)
        if plan:
            try:
                own = replicas.together("Measuring the grown model", lambda: loss_afterwards(inner, measured, loss))
            except BaseException:
                undo()
                raise
            done.loss_after = replicas.mean(own, sum(map(sample_count, measured)))
            show_shards_(model)
    done.seconds = time.perf_counter() - started
    record_(inner, done)
    return model, done


def check_sharded(model: GrowablePreTrainedModel, optimizer: Optimizer, config: GrowthConfig) -> None:
    """
    Verify that a sharded model may grow as a config asks for, and its optimizer with it.

    Raises:
        ValueError: If not; the message names the remedy.
    """
    if config.kinds.several or config.kinds.only_blocks:
        raise ValueError(
            f"`operator={config.operator!r}` is more than neurons, all that a sharded model grows by. {GROW_ALONE}"
        )
    if config.budget_unit == "seconds":
        raise ValueError("Sharded growth is not timed: use `budget_unit='macs'` or `'parameters'`.")
    show_shards_(model)
    check_attachments(model, {site.path for site in model.growable_linears()})
    check_optimizer(model, optimizer)
    check_shards(model)
    check_states(model, inner_optimizer(optimizer))


def check_batches(sizes: Sequence[Sequence[int]], config: GrowthConfig) -> None:
    """
    Verify that all processes compute in as many batches, of the probe and of both of its halves.

    Args:
        sizes (`Sequence[Sequence[int]]`): Samples of each batch, for each process.
        config ([`GrowthConfig`]): Whether the probe is halved.

    Raises:
        ValueError: If not.
    """
    counts = list(map(len, sizes))
    if len(set(counts)) > 1:
        raise ValueError(
            f"The ranks have {counts} probe batches. A sharded model computes on all ranks or on none: choose "
            f"`probe_samples` a multiple of the {len(counts)} processes."
        )
    if config.judged and 1 in {size for own in sizes for size in own}:
        raise ValueError(
            "A probe batch of one sample cannot be halved, and a sharded model computes on all ranks or on none: "
            f"choose `probe_samples` a multiple of {len(counts)} processes times `probe_batch_size`, which is at "
            "least 2."
        )
