"""What a sharded model, its optimizer and a plan must be like for it to grow in place; else the remedy is named."""

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from ...growth.optimizer_rules import State, rules_of


def check_shards(model: nn.Module) -> None:
    """
    Verify that a sharded model can be taken apart and put together.

    Raises:
        ValueError: If a parameter is not sharded by rows on one mesh, is kept on another device than it is trained on,
            or holds a gradient.
    """
    shards: dict[str, Any] = dict(model.named_parameters())
    odd = [name for name, value in shards.items() if not isinstance(value, DTensor) or value.placements != (Shard(0),)]
    if odd:
        raise ValueError(
            f"{odd[0]} is not sharded by rows over all processes, and cannot grow. Use FSDP2 alone: without "
            "`ignored_modules`, without replicas of shards (HSDP), tensor, context or expert parallelism."
        )
    away = [name for name, value in shards.items() if value.device.type != value.device_mesh.device_type]
    if away:
        raise ValueError(
            f"{away[0]} is kept on the {shards[away[0]].device.type} between steps (CPU offload), where it cannot "
            "grow. Leave out `cpu_offload`."
        )
    if any(value.grad is not None and bool(value.grad.to_local().any()) for value in shards.values()):
        raise ValueError(
            "Parameters hold gradients, which a growth would lose. Grow after `optimizer.step()` and "
            "`optimizer.zero_grad()`."
        )


def check_states(model: nn.Module, optimizer: Optimizer) -> None:
    """
    Verify that the states of an optimizer can be sharded anew, together with the parameters of a model.

    Raises:
        ValueError: If it trains others too, or a state has neither the shape of its parameter nor one entry.
    """
    if {State.ROW_MEANS, State.COLUMN_MEANS} & set(rules_of(optimizer).states.values()):
        raise ValueError(
            f"The states of {type(optimizer).__name__} are factored, and cannot be sharded anew. Use one whose "
            "states have the shape of their parameter, like AdamW or SGD."
        )
    known = set(model.parameters())
    for group in optimizer.param_groups:
        if any(parameter not in known for parameter in group["params"]):
            raise ValueError("The optimizer trains parameters that are not of the sharded model. Give it only those.")
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape != parameter.shape and value.numel() != 1:
                raise ValueError(
                    f"The state `{key}` of {type(optimizer).__name__} has neither the shape of its parameter nor one "
                    "entry, and cannot be sharded anew. Use AdamW or SGD."
                )


def check_new_blocks(optimizer: Optimizer) -> None:
    """Raise a `ValueError` if an optimizer would have to begin in new blocks with states that no process has whole."""
    if rules_of(optimizer).shared_steps:
        raise ValueError(
            f"{type(optimizer).__name__} counts steps by group, so that new blocks begin with states made from those "
            "of others, which no process has whole. Use AdamW or SGD, or let neurons and heads grow only."
        )
