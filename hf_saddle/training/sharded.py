"""Growth of models that FSDP2 (`fully_shard`) has sharded: gather, grow, shard anew."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ..curvature.loss import Loss
from ..growth import GrowthConfig, GrowthEvent
from ..growth.attachments import check_attachments
from ..growth.optimizer_state import inner_optimizer
from ..models.modeling_saddle import GrowablePreTrainedModel
from .event import growth_event_


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

    Sharding cannot be taken back, so the model is gathered into an unsharded one, which grows and is sharded anew:
    **the model is another object afterwards.** The optimizer stays the same object, with the state carried over;
    schedulers need nothing. `accelerator.save_state` still knows the old model: save the new one by
    `torch.distributed.checkpoint`. For the time of the event every process holds the whole model and its optimizer's
    state.

    Args:
        model (`nn.Module`): The sharded model.
        optimizer (`Optimizer` or `AcceleratedOptimizer`): The optimizer that trains it.
        batches (`Sequence`): The probe batches of this process, see [`probe_batches`].
        config ([`GrowthConfig`]): Where, how and how much to grow.
        shard (`Callable`): Shards a model in place, as it was done before the training.
        group (`torch.distributed.ProcessGroup`, *optional*): The processes; by default all.
        event, step, epoch, lr_ratio, to_come, loss: See [`growth_event_`].

    Returns:
        `tuple[nn.Module, GrowthEvent]`: The model to go on with (the given one if nothing grew), and the record.

    Raises:
        ValueError: If the model is not sharded or cannot grow.
        RuntimeError: If the processes do not agree, or another one failed. Nothing has changed then.
    """
    if not isinstance(model, FSDPModule) or not isinstance(model, GrowablePreTrainedModel):
        raise ValueError(f"Only Saddle models that FSDP2 has sharded are meant, got a {type(model).__name__}.")
    inner = inner_optimizer(optimizer)
    check_attachments(model, {site.path for site in model.growable_linears()})
    whole, twin = gather(model, inner)
    record = growth_event_(
        whole,
        twin,
        batches,
        config,
        group=dist.group.WORLD if group is None else group,
        event=event,
        step=step,
        epoch=epoch,
        lr_ratio=lr_ratio,
        to_come=to_come,
        loss=loss,
    )
    if not record.layers:
        model.growth_history = whole.growth_history
        return model, record
    names = {parameter: name for name, parameter in whole.named_parameters()}
    groups = [[names[parameter] for parameter in group["params"]] for group in twin.param_groups]
    states = {names[parameter]: state for parameter, state in twin.state.items()}
    shard(whole)
    sharded = dict(whole.named_parameters())
    for target, group_names in zip(inner.param_groups, groups, strict=True):
        target["params"][:] = [sharded[name] for name in group_names]
    inner.state.clear()
    for name, state in states.items():
        inner.state[sharded[name]] = {key: _scatter(value, sharded[name]) for key, value in state.items()}
    return whole, record


def gather(model: GrowablePreTrainedModel, optimizer: Optimizer) -> tuple[GrowablePreTrainedModel, Optimizer]:
    """An unsharded copy of a sharded model and of its optimizer, on every process."""
    weights = {name: _whole(tensor) for name, tensor in model.state_dict().items()}
    # The class that `fully_shard` derived from.
    model_class = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
    device = next(iter(weights.values())).device
    whole: GrowablePreTrainedModel = model_class._from_config(model.config, dtype=model.dtype).to(device)  # type: ignore[attr-defined]
    whole.load_state_dict(weights)
    whole.train(model.training)
    whole.growth_history = model.growth_history
    named = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        named[name].requires_grad_(parameter.requires_grad)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"params": [named[names[parameter]] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    twin = type(optimizer)(groups)  # type: ignore[call-arg]
    for parameter, state in optimizer.state.items():
        twin.state[named[names[parameter]]] = {key: _whole(value) for key, value in state.items()}
    return whole, twin


def _whole(value: Any) -> Any:
    value = value.full_tensor() if isinstance(value, DTensor) else value
    return value.detach().clone() if isinstance(value, Tensor) else value


def _scatter(value: Any, parameter: nn.Parameter) -> Any:
    """This process's part of what has an entry for every entry of a parameter; anything else is on all processes."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)
