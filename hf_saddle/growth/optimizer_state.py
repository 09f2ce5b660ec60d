"""The optimizer follows a growth: every old entry of a parameter keeps its state, at its place in its group."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from .drafts import NEW, Axis
from .optimizer_rules import Rules, State, rules_of, vector_group


# How often the gradient share counts.
_POWER = {State.GRADIENTS: 1, State.SIZES: 1, State.SQUARES: 2, State.UPDATES: 0}
_FROM_MEAN = (State.SIZES, State.SQUARES)


@dataclass(frozen=True, eq=False)
class Replaced:
    """
    A parameter that took the place of another; `axes` tells for every dimension where its slices come from. `merged`
    is a second one whose values were added to it.
    """

    name: str
    old: nn.Parameter
    new: nn.Parameter
    axes: tuple[Axis, ...]
    merged: nn.Parameter | None = None


@dataclass(frozen=True, eq=False)
class Added:
    """A parameter without predecessor, which joins the group of the old parameter `sibling`."""

    name: str
    new: nn.Parameter
    sibling: nn.Parameter


@dataclass
class Changes:
    """What happened to the parameters of a model."""

    replaced: list[Replaced] = field(default_factory=list)
    added: list[Added] = field(default_factory=list)
    removed: list[nn.Parameter] = field(default_factory=list)


def carry_optimizer_state_(optimizer: Optimizer, changes: Changes, order: Sequence[nn.Parameter]) -> None:
    """
    Replace parameters in an optimizer and carry their state over.

    - A new parameter takes the place of the old one in its group. One without predecessor joins the group of its
      sibling, at the place it has in a fresh optimizer on the grown model; it starts without state.
    - Its states are carried by what they mean, see [`optimizer_rules.OPTIMIZERS`]: averages of gradients, of squares
      and of updates entry by entry, by their share of the gradient; copies of the weights as the weights themselves.
    - Entries that no old one continues start from 0, second moments from the mean over the parameter. With an old step
      count the first updates of AdamW are then at most 1.2 times the learning rate (5.8 times for moments from 0).
      Where steps are counted by group, new parameters start in the same way, from the mean over their sibling.
    - Factored second moments (Adafactor) are carried so that the estimate of every untouched entry stays the same.
    - A vector does not join a group that is for matrices only (Muon), but one that holds vectors.

    Args:
        optimizer (`Optimizer` or `AcceleratedOptimizer`): The optimizer.
        changes ([`Changes`]): What happened to the parameters.
        order (`Sequence[nn.Parameter]`): All parameters of the grown model in canonical order.

    Raises:
        ValueError: If the optimizer lacks a parameter that it should train, or has state that cannot be carried. The
            optimizer is unchanged then.
    """
    for apply, _ in optimizer_swaps(optimizer, changes, order):
        apply()


def optimizer_swaps(
    optimizer: Optimizer, changes: Changes, order: Sequence[nn.Parameter]
) -> list[tuple[Callable[[], None], Callable[[], None]]]:
    """
    Compute what [`carry_optimizer_state_`] will assign, without changing the optimizer.

    Returns:
        `list[tuple[Callable, Callable]]`: Pairs of an assignment and the one that undoes it.
    """
    optimizer = inner_optimizer(optimizer)
    rules = rules_of(optimizer)
    held = set(held_parameters(optimizer))
    needed = [(change.name, change.old) for change in changes.replaced]
    needed += [(change.name, change.sibling) for change in changes.added]
    for name, parameter in needed:
        if parameter.requires_grad and parameter not in held:
            raise ValueError(
                f"The optimizer does not hold {name}, which requires a gradient. Give the optimizer that trains this "
                "model (was it made before an earlier growth, or for a copy?), or freeze the parameter."
            )
    grown = {
        change.old: (change.new, _grown_state(change, rules, optimizer.state))
        for change in changes.replaced
        if change.old in optimizer.state
    }
    started = {
        change.new: _first_state(change, rules, optimizer.state[change.sibling])
        for change in changes.added
        if rules.shared_steps and change.new.requires_grad and change.sibling in optimizer.state
    }
    groups = [_swap_group(*values) for values in _grown_groups(optimizer, rules, changes, order)]
    return [*groups, _swap_states(optimizer, changes, grown, started)]


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """
    The optimizer inside of Accelerate's wrapper.

    Raises:
        ValueError: If it is of a kind whose state cannot be carried through a growth.
    """
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    rules_of(optimizer)
    return optimizer


def held_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """What an optimizer trains, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _swap_group(group: dict[str, Any], params: list[nn.Parameter], names: list[str] | None):
    before, names_before = list(group["params"]), group.get("param_names")

    def apply() -> None:
        group["params"][:] = params
        if names is not None:
            group["param_names"] = names

    def undo() -> None:
        group["params"][:] = before
        if names is not None:
            group["param_names"] = names_before

    return apply, undo


def _swap_states(
    optimizer: Optimizer, changes: Changes, grown: dict[Any, tuple[nn.Parameter, Any]], started: dict[Any, Any]
):
    before: dict[Any, Any] = dict(optimizer.state)
    gone = set(changes.removed)
    after = dict(grown.get(old, (old, state)) for old, state in before.items() if old not in gone) | started

    def assign(states: dict[Any, Any]) -> Callable[[], None]:
        def swap() -> None:
            optimizer.state.clear()
            optimizer.state.update(states)

        return swap

    return assign(after), assign(before)


def _grown_groups(optimizer: Optimizer, rules: Rules, changes: Changes, order: Sequence[nn.Parameter]):
    """Every group, with its parameters and their names after the changes."""
    rank = {parameter: index for index, parameter in enumerate(order)}
    replaced = {change.old: change.new for change in changes.replaced}
    home = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    vectors = vector_group(optimizer, rules)

    def joins(change: Added, group: dict[str, Any]) -> bool:
        own = home.get(change.sibling)
        if own is not None and rules.matrices_only(own) and change.new.dim() < 2:
            own = vectors
        return change.new.requires_grad and own is group

    for group in optimizer.param_groups:
        old_names = group.get("param_names")
        pairs = zip(group["params"], old_names or [None] * len(group["params"]), strict=True)
        entries = [(replaced.get(parameter, parameter), name) for parameter, name in pairs]
        entries = [entry for entry in entries if not any(entry[0] is gone for gone in changes.removed)]
        joining = [change for change in changes.added if joins(change, group)]
        for change in sorted(joining, key=lambda change: rank[change.new]):
            # Behind the last of those that precede it: its canonical place wherever the group has that order.
            preceding = [i for i, (parameter, _) in enumerate(entries) if rank.get(parameter, -1) < rank[change.new]]
            entries.insert(preceding[-1] + 1 if preceding else 0, (change.new, change.name))
        names = [name for _, name in entries] if old_names else None
        yield group, [parameter for parameter, _ in entries], names


def _grown_state(change: Replaced, rules: Rules, states: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    state = states[change.old]
    grown = {name: _grown_value(change, name, _meaning(change, rules, name), value) for name, value in state.items()}
    means = {rules.states[name]: name for name in state if rules.states[name] in (State.ROW_MEANS, State.COLUMN_MEANS)}
    if means:
        names = means[State.ROW_MEANS], means[State.COLUMN_MEANS]
        rows, columns = (_grown_mean(change, name, state[name], kept) for kept, name in enumerate(names))
        # The estimate is row · column / mean(row): the means are scaled so that it stays the same.
        mean = state[names[0]].mean()
        grown[names[0]] = rows * _ratio(columns.mean(), state[names[1]].mean())
        grown[names[1]] = columns * _ratio(rows.mean(), mean)
    if change.merged is not None and change.merged in states:
        # A merged copy of the weights is the sum of both, as the weights are.
        for name, value in states[change.merged].items():
            if rules.states[name] is State.WEIGHTS:
                grown[name] = state[name] + value
    return grown


def _first_state(change: Added, rules: Rules, sibling: dict[str, Any]) -> dict[str, Any]:
    """A state for a parameter without predecessor, from that of the parameter beside it."""
    first = {}
    for name, value in sibling.items():
        meaning = _meaning(change, rules, name)
        if meaning is State.NUMBER:
            first[name] = value
        elif meaning is State.WEIGHTS:
            first[name] = change.new.detach().clone()
        else:
            start = value.mean() if meaning in _FROM_MEAN else value.new_zeros(())
            first[name] = start.expand(change.new.shape).clone()
    return first


def _ratio(now: Tensor, before: Tensor) -> Tensor:
    return torch.where(before > 0, now / before, torch.ones_like(before))


def _meaning(change: Replaced | Added, rules: Rules, name: str) -> State:
    if name not in rules.states:
        raise ValueError(
            f"There is no rule to carry the optimizer's state {name!r} of {change.name}; the rules of its class name "
            f"{', '.join(rules.states)}. See `hf_saddle.growth.optimizer_rules.OPTIMIZERS`."
        )
    return rules.states[name]


def _grown_value(change: Replaced, name: str, meaning: State, value: Any) -> Any:
    if value is None or meaning is State.NUMBER:
        return value
    if meaning in (State.ROW_MEANS, State.COLUMN_MEANS):
        return value  # replaced later, together with its counterpart
    _check_shape(change, name, value, change.old.shape)
    dims = tuple(range(value.dim()))
    if meaning is State.WEIGHTS:
        grown = _grown_weights(change, value, dims)
    else:
        grown = _carry(value, dims, change.axes, [axis.share ** _POWER[meaning] for axis in change.axes])
        grown = _fill(grown, dims, change.axes, value.mean() if meaning in _FROM_MEAN else value.new_zeros(()))
    _check_shape(change, name, grown, change.new.shape)
    return grown


def _grown_weights(change: Replaced, value: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A copy of the weights: as far from the new weights as it was from the old ones, times what scaled those."""
    scales = [axis.scale for axis in change.axes]
    copy, old = (_carry(weights, dims, change.axes, scales) for weights in (value, change.old.to(value)))
    new = change.new.to(value)
    return _fill(torch.where(new == old, copy, new + (copy - old)), dims, change.axes, new)


def _check_shape(change: Replaced, name: str, value: Tensor, expected: torch.Size) -> None:
    """Fused optimizers read past the end of state of a wrong shape, so none may get there."""
    if value.shape != expected or not value.is_floating_point():
        raise ValueError(
            f"The optimizer's state {name!r} of {change.name} is {value.dtype} of shape {tuple(value.shape)} instead "
            f"of {tuple(expected)}. It belongs to another model."
        )


def _grown_mean(change: Replaced, name: str, value: Tensor, kept: int) -> Tensor:
    """A factored second moment, carried along the dimension that it keeps."""
    _check_shape(change, name, value, _mean_shape(change.old, value, kept))
    dims, axes = (kept if value.dim() == 2 else 0,), (change.axes[kept],)
    grown = _fill(_carry(value, dims, axes, [axes[0].share ** 2]), dims, axes, value.mean())
    _check_shape(change, name, grown, _mean_shape(change.new, value, kept))
    return grown


def _mean_shape(parameter: Tensor, value: Tensor, kept: int) -> torch.Size:
    if value.dim() == 1:
        return parameter.shape[kept : kept + 1]
    return torch.Size([size if dim == kept else 1 for dim, size in enumerate(parameter.shape)])


def _carry(value: Tensor, dims: tuple[int, ...], axes: tuple[Axis, ...], factors: Sequence[Tensor]) -> Tensor:
    """`value` with its slices along `dims` gathered and multiplied by `factors`."""
    for dim, axis, factor in zip(dims, axes, factors, strict=True):
        size = len(axis.source)
        unchanged = size == value.shape[dim] and bool((axis.source == torch.arange(size)).all())
        if not unchanged:
            value = value.index_select(dim, axis.source.clamp(min=0).to(value.device))
        if bool((factor != 1).any()):
            value = value * factor.to(value).view(_view(value, dim))
    return value


def _fill(value: Tensor, dims: tuple[int, ...], axes: tuple[Axis, ...], fill: Tensor) -> Tensor:
    """`value` with the slices that no old one continues taken from `fill`."""
    for dim, axis in zip(dims, axes, strict=True):
        if bool((axis.source == NEW).any()):
            value = torch.where((axis.source == NEW).to(value.device).view(_view(value, dim)), fill, value)
    return value


def _view(value: Tensor, dim: int) -> list[int]:
    return [-1 if other == dim else 1 for other in range(value.dim())]
