"""The optimizer follows a growth: every old entry of a parameter keeps its state, at its place in its group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, Adadelta, Adagrad, Optimizer, Rprop

from .drafts import NEW, Axis


# State that is quadratic in the gradient, by its name in torch.optim and transformers.
SECOND_MOMENTS = frozenset(
    ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "variance", "row_var", "col_var")
    + ("exp_avg_sq_row", "exp_avg_sq_col")
)
# Factored second moments (Adafactor): a mean over the last dimension, and one over the dimension before it.
_ROW_MEANS, _COLUMN_MEANS = ("row_var", "exp_avg_sq_row"), ("col_var", "exp_avg_sq_col")
# Their state is not an average over gradients, or has to exist before the first step: no rule for new entries.
_REFUSED = (LBFGS, Rprop, ASGD, Adadelta, Adagrad)


@dataclass(frozen=True, eq=False)
class Replaced:
    """A parameter that took the place of another; `axes` tells for every dimension where its slices come from."""

    name: str
    old: nn.Parameter
    new: nn.Parameter
    axes: tuple[Axis, ...]


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
    - A state tensor of the parameter's shape is carried entry by entry: multiplied by the entry's gradient share, or
      by its square for `SECOND_MOMENTS`. This holds for optimizers of any origin (Adam, SGD, Lion, …).
    - Entries that no old one continues start from 0, second moments from the mean over the parameter. With an old step
      count the first updates of AdamW are then at most 1.2 times the learning rate (5.8 times for moments from 0).
    - Factored second moments (Adafactor) are carried so that the estimate of every untouched entry stays the same.
    - Numbers, and tensors of one element, are kept. Any other state is refused.

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
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for change in changes.replaced:
        if change.old.requires_grad and change.old not in held:
            raise ValueError(
                f"The optimizer does not hold {change.name}, which requires a gradient. Give the optimizer that "
                "trains this model (was it made before an earlier growth, or for a copy?), or freeze the parameter."
            )
    grown = [
        (change, _grown_state(change, optimizer.state[change.old]))
        for change in changes.replaced
        if change.old in optimizer.state
    ]
    groups = [_swap_group(*values) for values in _grown_groups(optimizer, changes, order)]
    return [*groups, _swap_states(optimizer, changes, grown)]


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """
    The optimizer inside of Accelerate's wrapper.

    Raises:
        ValueError: If it is of a kind whose state cannot be carried through a growth.
    """
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, _REFUSED):
        raise ValueError(
            f"The state of {type(optimizer).__name__} cannot be carried through a growth. Use AdamW, SGD, Adafactor "
            "or another optimizer whose state are moments of the gradient."
        )
    return optimizer


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


def _swap_states(optimizer: Optimizer, changes: Changes, grown: list[tuple[Replaced, dict[str, Any]]]):
    before: dict[Any, Any] = dict(optimizer.state)
    renewed: dict[Any, tuple[Any, Any]] = {change.old: (change.new, state) for change, state in grown}
    gone = set(changes.removed)
    after = dict(renewed.get(old, (old, state)) for old, state in before.items() if old not in gone)

    def assign(states: dict[Any, Any]) -> Callable[[], None]:
        def swap() -> None:
            optimizer.state.clear()
            optimizer.state.update(states)

        return swap

    return assign(after), assign(before)


def _grown_groups(optimizer: Optimizer, changes: Changes, order: Sequence[nn.Parameter]):
    """Every group, with its parameters and their names after the changes."""
    rank = {parameter: index for index, parameter in enumerate(order)}
    replaced = {change.old: change.new for change in changes.replaced}
    for group in optimizer.param_groups:
        old_names = group.get("param_names")
        pairs = zip(group["params"], old_names or [None] * len(group["params"]), strict=True)
        entries = [(replaced.get(parameter, parameter), name) for parameter, name in pairs]
        entries = [entry for entry in entries if not any(entry[0] is gone for gone in changes.removed)]
        members = set(group["params"])
        joining = [change for change in changes.added if change.sibling in members and change.new.requires_grad]
        for change in sorted(joining, key=lambda change: rank[change.new]):
            # Behind the last of those that precede it: its canonical place wherever the group has that order.
            preceding = [i for i, (parameter, _) in enumerate(entries) if rank.get(parameter, -1) < rank[change.new]]
            entries.insert(preceding[-1] + 1 if preceding else 0, (change.new, change.name))
        names = [name for _, name in entries] if old_names else None
        yield group, [parameter for parameter, _ in entries], names


def _grown_state(change: Replaced, state: dict[str, Any]) -> dict[str, Any]:
    grown = {}
    for name, value in state.items():
        grown[name] = _grown_value(change, name, value)
    for names in zip(_ROW_MEANS, _COLUMN_MEANS, strict=True):
        if all(isinstance(state.get(name), Tensor) for name in names):
            rows, columns = (_grown_mean(change, name, state[name]) for name in names)
            # The estimate is row · column / mean(row): the means are scaled so that it stays the same.
            mean = state[names[0]].mean()
            grown[names[0]] = rows * _ratio(columns.mean(), state[names[1]].mean())
            grown[names[1]] = columns * _ratio(rows.mean(), mean)
            _check_shape(change, names[0], grown[names[0]], _mean_shape(change.new, names[0], state[names[0]]))
            _check_shape(change, names[1], grown[names[1]], _mean_shape(change.new, names[1], state[names[1]]))
    return grown


def _ratio(now: Tensor, before: Tensor) -> Tensor:
    return torch.where(before > 0, now / before, torch.ones_like(before))


def _grown_value(change: Replaced, name: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise _unknown(change, name, f"a {type(value).__name__}")
    if value.shape == change.old.shape and value.is_floating_point():
        power = 2 if name in SECOND_MOMENTS else 1
        grown = _carry(value, tuple(range(value.dim())), change.axes, power, _fill(name, value))
        _check_shape(change, name, grown, change.new.shape)
        return grown
    if name in (*_ROW_MEANS, *_COLUMN_MEANS) and change.old.dim() == 2:
        _check_shape(change, name, value, _mean_shape(change.old, name, value))
        return value  # replaced below, together with its counterpart
    if value.numel() == 1:
        return value
    raise _unknown(change, name, f"{value.dtype} of shape {tuple(value.shape)}")


def _unknown(change: Replaced, name: str, what: str) -> ValueError:
    return ValueError(
        f"The optimizer's state {name!r} of {change.name} is {what}, the parameter has shape "
        f"{tuple(change.old.shape)}: there is no rule to carry it. Use an optimizer whose state tensors have the "
        "shape of the parameter."
    )


def _check_shape(change: Replaced, name: str, value: Tensor, expected: torch.Size) -> None:
    """Fused optimizers read past the end of state of a wrong shape, so none may get there."""
    if value.shape != expected:
        raise ValueError(
            f"The optimizer's state {name!r} of {change.name} has shape {tuple(value.shape)} instead of "
            f"{tuple(expected)}. It belongs to another model."
        )


def _mean_shape(parameter: Tensor, name: str, value: Tensor) -> torch.Size:
    kept = 0 if name in _ROW_MEANS else 1
    if value.dim() == 1:
        return parameter.shape[kept : kept + 1]
    return torch.Size([size if dim == kept else 1 for dim, size in enumerate(parameter.shape)])


def _grown_mean(change: Replaced, name: str, value: Tensor) -> Tensor:
    """A factored second moment, carried along the dimension that it keeps."""
    kept = 0 if name in _ROW_MEANS else 1
    return _carry(value, (kept if value.dim() == 2 else 0,), (change.axes[kept],), 2, value.mean())


def _fill(name: str, value: Tensor) -> Tensor:
    return value.mean() if name in SECOND_MOMENTS else value.new_zeros(())


def _carry(value: Tensor, dims: tuple[int, ...], axes: tuple[Axis, ...], power: int, fill: Tensor) -> Tensor:
    """`value` with its slices along `dims` gathered, scaled by the gradient share, and new ones filled."""
    for dim, axis in zip(dims, axes, strict=True):
        size = len(axis.source)
        unchanged = size == value.shape[dim] and bool((axis.source == torch.arange(size)).all())
        if not unchanged:
            value = value.index_select(dim, axis.source.clamp(min=0).to(value.device))
        view = [-1 if other == dim else 1 for other in range(value.dim())]
        if bool((axis.share != 1).any()):
            value = value * (axis.share**power).to(value).view(view)
        if bool((axis.source == NEW).any()):
            value = torch.where((axis.source == NEW).to(value.device).view(view), fill, value)
    return value
