"""The state that a parameter has in its optimizer after a growth, by what each of its values means."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..optimizer_rules import Rules, State
from ..surgery.changes import Added, Replaced
from ..surgery.slices import NEW, Axis, like_format


# How often the gradient share counts.
_POWER = {State.GRADIENTS: 1, State.SIZES: 1, State.SQUARES: 2, State.UPDATES: 0}
_FROM_MEAN = (State.SIZES, State.SQUARES)


def grown_state(change: Replaced, rules: Rules, states: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    """The state of a parameter that took the place of another, whose state is in `states`."""
    state = states[change.old]
    grown = {name: _grown_value(change, name, _meaning(change, rules, name), value) for name, value in state.items()}
    means = {rules.states[name]: name for name in state if rules.states[name] in (State.ROW_MEANS, State.COLUMN_MEANS)}
    if means:
        names = means[State.ROW_MEANS], means[State.COLUMN_MEANS]
        dims = change.old.dim()
        rows, columns = (_grown_mean(change, name, state[name], dims - 1 - i) for i, name in enumerate(names))
        if dims == 2:
            # The estimate is row · column / mean(row): the means are scaled so that it stays the same. Of a kernel it
            # is made for each pair of channels by itself, where a growth changes nothing.
            mean = state[names[0]].mean()
            rows, columns = rows * _ratio(columns.mean(), state[names[1]].mean()), columns * _ratio(rows.mean(), mean)
        grown[names[0]], grown[names[1]] = rows, columns
    if change.merged is not None and change.merged in states:
        # A merged copy of the weights is the sum of both, as the weights are.
        for name, value in states[change.merged].items():
            if rules.states[name] is State.WEIGHTS:
                grown[name] = state[name] + value
    return grown


def first_state(change: Added, rules: Rules, sibling: dict[str, Any]) -> dict[str, Any]:
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
    # Fused optimizers go through state and parameter in the order of their memory.
    return like_format(grown, change.new)


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


def _grown_mean(change: Replaced, name: str, value: Tensor, lost: int) -> Tensor:
    """A factored second moment, carried along the dimensions that it keeps: all but `lost`."""
    _check_shape(change, name, value, _mean_shape(change.old, value, lost))
    kept = [dim for dim in range(change.old.dim()) if dim != lost]
    squeezed = value.dim() < change.old.dim()
    dims = tuple(dim - 1 if squeezed and dim > lost else dim for dim in kept)
    axes = tuple(change.axes[dim] for dim in kept)
    grown = _fill(_carry(value, dims, axes, [axis.share**2 for axis in axes]), dims, axes, value.mean())
    _check_shape(change, name, grown, _mean_shape(change.new, value, lost))
    return grown


def _mean_shape(parameter: Tensor, value: Tensor, lost: int) -> torch.Size:
    kept = [1 if dim == lost else size for dim, size in enumerate(parameter.shape)]
    if value.dim() < parameter.dim():
        del kept[lost]
    return torch.Size(kept)


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
