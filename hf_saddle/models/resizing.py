"""Linears take the shapes of a checkpoint, and no optimizer goes on training what they held before."""

import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .blocks import block_siblings
from .growable import Growable
from .parameters import follow_


# Parameters that another one has replaced, by their id, as long as something (an optimizer) still holds them.
_retired: "weakref.WeakValueDictionary[int, nn.Parameter]" = weakref.WeakValueDictionary()
# Parameters that came without predecessor, by their id, each with one that it is trained like. They are taken out when
# an optimizer that holds them makes a step.
_waiting: "weakref.WeakValueDictionary[int, nn.Parameter]" = weakref.WeakValueDictionary()
_siblings: "weakref.WeakValueDictionary[int, nn.Parameter]" = weakref.WeakValueDictionary()
_passed_over: set[int] = set()


def take_shapes_(layer: Any, fresh: Any) -> None:
    """
    Give a layer and its branches the shapes, and the kind of units, of another one, whose branch it takes over.

    A parameter whose name and shape stay is the same object afterwards. The others are new ones with the value 0, to
    be filled: they require a gradient if their predecessor did, or, without one, if the neurons they feed are trained.

    Args:
        layer (`Growable` or a batch normalisation): The layer.
        fresh (`nn.Module`): A layer of the same kind on the meta device.
    """
    before = dict(layer.named_parameters())
    weight = before["weight"]
    if isinstance(layer, Growable):
        if layer.skip is not None:
            del layer.skip  # a registered module, which an ordinary attribute cannot replace
        branch: Any = fresh.skip
        layer.skip = None if branch is None else _filled(branch, weight).train(layer.training)
    after: dict[str, nn.Parameter] = {}
    came: list[tuple[nn.Parameter, nn.Parameter]] = []
    for name, new in list(fresh.named_parameters()):
        old = before.get(name)
        if old is not None and old.shape == new.shape:
            after[name] = old
        else:
            model = old if old is not None else next(after[other] for other in siblings(name) if other in after)
            after[name] = follow_(nn.Parameter(weight.new_zeros(new.shape)), model)
            came += [(after[name], model)] if old is None else []
        owner, _, leaf = name.rpartition(".")
        layer.get_submodule(owner)._parameters[leaf] = after[name]
    for name, buffer in layer.named_buffers(recurse=False):
        if buffer.shape != fresh._buffers[name].shape:
            layer._buffers[name] = buffer.new_zeros(fresh._buffers[name].shape)
    if isinstance(layer, Growable):
        layer.fit_sizes_()
    else:
        layer.num_features = len(layer.weight)
    retire_(old for name, old in before.items() if after.get(name) is not old)
    expect_(came)


def _filled(module: nn.Module, like: Tensor) -> Any:
    """A module of the meta device on that of a tensor, with its dtype and zeros."""
    module = module.to_empty(device=like.device).to(like.dtype)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.detach().zero_()
    return module


def siblings(name: str) -> list[str]:
    """
    Parameters that a new one is trained like, nearest first: of the linears that a branch feeds, and those of the same
    name in the blocks before.
    """
    found, before = [], block_siblings(name)
    kinds = ("bias", "weight") if name.endswith("bias") else ("weight",)
    while "skip." in name:
        name = name.rpartition("skip.")[0]
        found += [f"{name}{kind}" for kind in kinds]
        name = name.removesuffix("linear.")
    return found + before


def retire_(parameters: Iterable[nn.Parameter]) -> None:
    """
    Note parameters that no module holds any more. From now on an optimizer that still does raises before its step,
    instead of leaving those at rest that took their place.
    """
    _watch_optimizers()
    _retired.update((id(parameter), parameter) for parameter in parameters)


def reinstate_(parameters: Iterable[nn.Parameter]) -> None:
    """The opposite of [`retire_`], where what replaced them was undone."""
    for parameter in parameters:
        _retired.pop(id(parameter), None)


def expect_(came: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """
    Note parameters without predecessor, each with one that it is trained like. An optimizer that trains only the
    latter raises before its second step, unless another one that holds the new parameter has made a step until then.
    """
    _watch_optimizers()
    for new, sibling in came:
        _waiting[id(new)], _siblings[id(new)] = new, sibling
        _passed_over.discard(id(new))


@cache
def _watch_optimizers() -> Any:
    return register_optimizer_step_pre_hook(_refuse_unbound)


def _refuse_unbound(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _retired and not _waiting:
        return
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    dead = sum(_retired.get(id(parameter)) is parameter for parameter in held)
    if dead:
        raise RuntimeError(
            f"{dead} of the {len(held)} parameters of the optimizer are no longer in the model, which was grown, "
            f"merged or loaded without this optimizer: those that took their place would never be trained. {_REMEDY}"
        )
    ids = set(map(id, held))
    for key, new in list(_waiting.items()):
        if key in ids:
            del _waiting[key]
        elif new.requires_grad and new.grad is not None and id(_siblings.get(key)) in ids:
            if key in _passed_over:
                raise RuntimeError(
                    f"The model has a new parameter of shape {tuple(new.shape)} that no optimizer trains: it was "
                    f"grown or loaded without this optimizer, which trains the neurons beside it. {_REMEDY}"
                )
            _passed_over.add(key)


_REMEDY = (
    "Make optimizer and DDP wrapper anew, or let them follow by what hf_saddle has for it: the `optimizer` of `grow_` "
    "and `growth_event_`, `register_growth_checkpointing` before `accelerator.load_state`, `rebind_` after "
    "`load_state_dict`, a GrowthCallback in a Trainer."
)

__all__ = ["expect_", "reinstate_", "retire_", "siblings", "take_shapes_"]
