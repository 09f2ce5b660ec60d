"""The lists of blocks of a model take other orders: what is to be assigned, computed before anything is."""

import copy
from collections.abc import Collection, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from .blocks import Orders
from .growable import Growable


# A mapping, and what it is to hold: under these names, or, where they are `None`, altogether.
Assignment = tuple[MutableMapping[str, Any], dict[str, Any], tuple[str, ...] | None]

# What may differ between a block and the same one at another place, without a change of what it computes: where its
# keys and values are cached, and how often it is left out while training.
_OF_PLACE = ("layer_idx", "drop_prob", "drop_path")
_MISSING = object()
_TABLES = ("_parameters", "_buffers", "_modules")


@dataclass
class Restacking:
    """
    Other orders of the blocks of a model, computed but not yet done.

    Attributes:
        assignments (`list`): All that the model is to hold.
        made (`dict[str, tuple[nn.Module, nn.Module]]`):
            New blocks, copies of others, by their path, each with that which it is made like.
        removed (`list[nn.Module]`): Blocks that the model has no more.
    """

    assignments: list[Assignment] = field(default_factory=list)
    made: dict[str, tuple[nn.Module, nn.Module]] = field(default_factory=dict)
    removed: list[nn.Module] = field(default_factory=list)


def restack(
    model: Any, orders: Orders, config: Any, anew: Collection[str] = (), *, to_be_loaded: bool = False
) -> Restacking:
    """
    What is to be assigned so that the lists of blocks of a model have other orders. Whatever the constructors of stock
    derive from the place of a block, or from their number, follows.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        orders (`Mapping[str, Sequence[int]]`): The orders.
        config ([`SaddleConfig`]): The config of the model with these orders.
        anew (`Collection[str]`, *optional*):
            Paths of new blocks whose weights will be others, so that each block of the list may be what they are like.
        to_be_loaded (`bool`, *optional*, defaults to `False`):
            Whether all weights will be others, so that blocks may become what they are not.

    Raises:
        ValueError: If a block would compute something else at its new place, cannot be a copy of another, or if other
            parameters would have other shapes.
    """
    before, after = twin_of(model, model.config), twin_of(model, config)
    found = Restacking()
    places = {id(module) for stack in orders for module in after.base_model.get_submodule(stack).children()}
    for stack, order in orders.items():
        stock, fresh, own = (each.base_model.get_submodule(stack) for each in (before, after, model))
        children: dict[str, nn.Module] = {}
        for index, old in enumerate(order):
            block, path = own[old], f"{stack}.{index}"
            if old in order[:index]:
                model_of = old
                if path in anew and not _fits(stock[old], fresh[index]):
                    model_of = next((other for other in range(len(own)) if _fits(stock[other], fresh[index])), old)
                children[str(index)] = _made_like(own[model_of], stock[model_of], fresh[index], path)
                found.made[path] = (children[str(index)], own[model_of])
                continue
            children[str(index)] = block
            found.assignments += _follow(block, stock[old], fresh[index], f"{stack}.{old}", to_be_loaded)
        found.removed += [block for index, block in enumerate(own) if index not in order]
        found.assignments.append((own._modules, children, None))
    inside = tuple(f"{model.inner_prefix}{stack}." for stack in orders)
    shapes = {name: tensor.shape for name, tensor in before.state_dict().items()}
    for name, tensor in after.state_dict().items():
        if not name.startswith(inside) and shapes.get(name) != tensor.shape:
            raise ValueError(
                f"{name} has as many entries as the model has blocks, and would not fit any more. Build the model "
                "without it (`use_weighted_layer_sum=False` of Whisper's config)."
            )
    configs: set[int] = set()
    for name, fresh in _outside(after, places):
        own, stock = model.get_submodule(name), before.get_submodule(name)
        found.assignments += _differences(own, stock, fresh)
        held = vars(own).get("config")
        if isinstance(held, PreTrainedConfig) and id(held) not in configs:
            configs.add(id(held))
            known, wanted = vars(stock.config), vars(fresh.config)
            changed = {key: value for key, value in wanted.items() if known.get(key, _MISSING) != value}
            found.assignments.append((vars(held), changed, tuple(changed)))
    return found


def assign_(assignments: Iterable[Assignment]) -> list[Assignment]:
    """Assign, and return what goes back to what was."""
    undo: list[Assignment] = []
    for holder, values, names in assignments:
        kept = dict(holder) if names is None else {name: holder[name] for name in names if name in holder}
        undo.insert(0, (holder, kept, names))
        put_back_(holder, values, names)
    return undo


def put_back_(holder: MutableMapping[Any, Any], values: dict[Any, Any], names: tuple[str, ...] | None) -> None:
    """Let a mapping hold `values`, in their order; of all its keys, or of those in `names`."""
    for name in list(holder) if names is None else names:
        holder.pop(name, None)
    holder.update(values)


def twin_of(model: Any, config: Any) -> Any:
    """A model of a config that takes no memory."""
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(config)).train(model.training)
    _leave_out_(twin, model)
    return twin


def _leave_out_(twin: nn.Module, model: nn.Module) -> None:
    """Leave out what an argument of the constructor left out, as `add_pooling_layer=False` does: no config has it."""
    for name, child in list(twin.named_children()):
        own = getattr(model, name, child)
        if own is None:
            setattr(twin, name, None)
        elif own is not child and not isinstance(child, Growable):  # branches are told by the config
            _leave_out_(child, own)


def _outside(model: nn.Module, places: set[int], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules but certain ones and what is in them."""
    if id(model) in places:
        return
    yield name, model
    for child, module in model.named_children():
        yield from _outside(module, places, f"{name}.{child}".lstrip("."))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _differences(own: nn.Module, stock: nn.Module, fresh: nn.Module) -> list[Assignment]:
    """Plain attributes in which one stock module differs from another."""
    changed = {
        key: value
        for key, value in vars(fresh).items()
        if _is_plain(value) and key != "training" and vars(stock).get(key, _MISSING) != value
    }
    return [(vars(own), changed, tuple(changed))] if changed else []


def _follow(block: nn.Module, stock: nn.Module, fresh: nn.Module, path: str, free: bool) -> Iterator[Assignment]:
    """A block takes the attributes that stock gives to one at its new place, unless it would not be the same there."""
    for name, new in fresh.named_modules():
        for holder, values, names in _differences(block.get_submodule(name), stock.get_submodule(name), new):
            for key in values:
                if key not in _OF_PLACE and not free:
                    raise ValueError(
                        f"{path} would have `{key}={values[key]!r}` in place of {holder.get(key)!r} behind the new "
                        "blocks, and compute something else. Insert them behind the last block of the list, or as "
                        "many at once as the pattern of its blocks is long (two of a Swin's)."
                    )
            yield holder, values, names


def _fits(stock: nn.Module, fresh: nn.Module) -> bool:
    """Whether a copy of one stock block can stand in the place of another."""
    there = dict(stock.named_modules())
    return all(name in there and _alike(there[name], module) for name, module in fresh.named_modules())


def _alike(module: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have parameters of the same shapes, and are of one class unless neither holds any."""
    if type(module) is not type(other):
        return not any(True for each in (module, other) for _ in each.parameters())
    first, second = (
        {name: None if held is None else held.shape for name, held in each._parameters.items()}
        for each in (module, other)
    )
    return first == second


def _made_like(block: nn.Module, stock: nn.Module, fresh: nn.Module, path: str) -> nn.Module:
    """
    A copy of a block for another place, with its hooks. What stock has in the first block only (T5's table of
    positions) stays there.
    """
    if not _fits(stock, fresh):
        raise ValueError(
            f"A block at {path} cannot be like that before it, which changes the shape of what passes. Choose a place "
            "behind a block that does not, or a block whose weights start anew, where the list has a block that fits."
        )
    there = dict(stock.named_modules())
    # Hooks and configs are shared: they may hold anything.
    shared: dict[int, Any] = {}
    for module in block.modules():
        for key, value in vars(module).items():
            if key in _TABLES:
                continue
            held = value.values() if isinstance(value, dict) else [value]
            shared |= {id(each): each for each in held if callable(each) or isinstance(each, PreTrainedConfig)}
    made: Any = copy.deepcopy(block, shared)
    wanted = dict(fresh.named_modules())
    for name, module in there.items():
        parent, _, leaf = name.rpartition(".")
        if name not in wanted and (not parent or parent in wanted):
            delattr(made.get_submodule(parent), leaf)
        elif name in wanted and type(wanted[name]) is not type(module):
            setattr(made.get_submodule(parent), leaf, copy.deepcopy(wanted[name]).train(block.training))
    kept = {name: there[name] if type(there[name]) is type(wanted[name]) else wanted[name] for name in wanted}
    for name, module in wanted.items():
        assign_(_differences(made.get_submodule(name), kept[name], module))
    return made  # type: ignore[no-any-return]
