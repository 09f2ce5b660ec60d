"""The optimizer follows a model whose parameters were replaced, as `load_state_dict` of other shapes does."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...models.resizing import siblings
from ..optimizer_rules import inner_optimizer
from ..surgery.changes import Added, Changes, Replaced
from ..surgery.slices import Axis
from .state import carry_optimizer_state_, held_parameters


def rebind_optimizer_(model: nn.Module, optimizer: Optimizer, held: Mapping[str, nn.Parameter]) -> Changes:
    """
    Make an optimizer hold the parameters that a model has now, in place of those that it had.

    A parameter takes the place of the one of its name, in the same group. Its state is kept where the shape is the
    same, else it starts without. What vanished leaves its group; a branch's parameter that is new joins that of the
    neurons it feeds, at the place it has in a fresh optimizer. Parameters that are not of the model stay, and so do
    those of the model that the optimizer has by now, as after a growth that it followed.

    Args:
        model (`nn.Module`): The model.
        optimizer (`Optimizer` or `AcceleratedOptimizer`): The optimizer that trains it.
        held (`Mapping[str, nn.Parameter]`): `dict(model.named_parameters())` of before.

    Returns:
        [`Changes`]: What happened to the parameters.

    Raises:
        ValueError: If a new parameter would belong to no group, or the optimizer's state cannot be carried. The
            optimizer is unchanged then.
    """
    inner = inner_optimizer(optimizer)
    present = dict(model.named_parameters())
    changes, reshaped = Changes(), []
    followed = set(held_parameters(inner))
    for name, new in present.items():
        old = held.get(name)
        if new in followed:
            continue
        if old is None:
            changes.added.append(Added(name, new, _sibling(name, new, held)))
        elif old is not new:
            changes.replaced.append(Replaced(name, old, new, tuple(Axis.unchanged(size) for size in old.shape)))
            reshaped += [old] if old.shape != new.shape else []
    changes.removed += [old for name, old in held.items() if name not in present]
    # A state of another shape is not carried: it would have to be known which of its entries continue.
    dropped: dict[Any, Any] = {old: inner.state.pop(old) for old in reshaped if old in inner.state}
    try:
        carry_optimizer_state_(inner, changes, list(present.values()))
    except BaseException:
        inner.state.update(dropped)
        raise
    return changes


def watch_modules(model: nn.Module) -> Callable[[], bool]:
    """
    A function that tells whether a model still has the very modules and parameters that it has now. It compares
    objects, not values, and costs a fraction of listing the parameters anew.
    """
    tables = [table for module in model.modules() for table in (module._parameters, module._modules)]
    # With what they hold, so that no id is used again.
    noted = [(table, list(table.values()), list(map(id, table.values()))) for table in tables]

    def unchanged() -> bool:
        return all(list(map(id, table.values())) == ids for table, _, ids in noted)

    return unchanged


def same_parameters(model: nn.Module, held: Mapping[str, nn.Parameter]) -> bool:
    """Whether a model has the very parameters that it had; compares objects, not values."""
    return list(map(id, model.parameters())) == list(map(id, held.values()))


def same_shapes(model: nn.Module, held: Mapping[str, nn.Parameter]) -> bool:
    """Whether a model has parameters of the names and shapes of others."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return shapes == {name: parameter.shape for name, parameter in held.items()}


def _sibling(name: str, new: nn.Parameter, held: Mapping[str, nn.Parameter]) -> nn.Parameter:
    """The parameter whose group a new one joins."""
    for other in siblings(name):
        if other in held:
            return held[other]
    if not new.requires_grad:
        return new  # joins no group
    raise ValueError(
        f"{name} is new in the model, and no group of the optimizer is its own. Make the optimizer anew, or freeze it."
    )
