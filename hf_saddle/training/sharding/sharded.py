"""Growth of a model that FSDP2 (`fully_shard`) has sharded: the probe runs sharded, the growth by blocks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from ...curvature.heads import check_sharding
from ...curvature.loss import Loss
from ...curvature.samples import sample_count
from ...growth import GrowthConfig, GrowthEvent, GrowthPlan
from ...growth.optimizer_rules import inner_optimizer
from ...growth.surgery.attachments import check_attachments
from ...growth.surgery.grow import Growing
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import check_growable, growing_kinds, heads_that_grow
from ..checks.optimizer_checks import check_optimizer
from ..checks.shard_checks import check_new_blocks, check_shards, check_states
from ..distributed import Replicas
from ..events.carry_out import carry_out_
from ..events.moment import Moment
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
    moment = Moment(event, lr_ratio, to_come)
    sharded = Sharded(model, optimizer, shard, group)
    return model, carry_out_(sharded, batches, config, moment, loss, step=step, epoch=epoch)


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
    sharded = Sharded(model, optimizer, shard, group)
    return model, carry_out_(sharded, batches, plan, Moment(), loss, step=step, epoch=epoch)


class Sharded:
    """A [`Trained`] model that FSDP2 has sharded; arguments are those of [`growth_event_sharded_`]."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        shard: Callable[[nn.Module], Any],
        group: "dist.ProcessGroup | None" = None,
    ):
        if not isinstance(model, FSDPModule) or not isinstance(model, GrowablePreTrainedModel):
            raise ValueError(f"Only Saddle models that FSDP2 has sharded are meant, got a {type(model).__name__}.")
        self.model = check_growable(model, sharded=True)
        self.optimizer = optimizer
        self.replicas = Replicas(dist.group.WORLD if group is None else group)
        self.how: dict[str, Any] = {"shard": shard, "replicas": self.replicas}
        self.growing: Growing = partial(growing_sharded_, **self.how)

    def check(self, config: GrowthConfig | None) -> None:
        """Raise a `ValueError` if the model cannot be taken apart, or not grow by a config, see [`check_sharded`]."""
        if config is None:
            _check_taking(self.model, self.optimizer)
        else:
            check_sharded(self.model, self.optimizer, config)

    def check_together(self, batches: Sequence[Any], config: GrowthConfig | None) -> None:
        """Raise a `ValueError` if processes would wait for each other, see [`check_batches`]."""
        check_batches(self.replicas.gather([sample_count(batch) for batch in batches]), config)

    def grow_(self, plan: GrowthPlan, **record: Any) -> tuple[GrowthEvent, Callable[[], None]]:
        """Grow model and optimizer, see [`grow_sharded_`]."""
        return grow_sharded_(self.model, plan, self.optimizer, **self.how, **record)

    def settle_(self) -> None:
        """Let modules hold their shards again, after the loss was measured."""
        show_shards_(self.model)


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
