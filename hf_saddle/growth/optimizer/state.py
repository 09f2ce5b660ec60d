"""The optimizer follows a growth: every old entry of a parameter keeps its state, at its place in its group."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..optimizer_rules import Rules, inner_optimizer, rules_of, vector_group
from ..surgery.changes import Added, Changes
from .values import first_state, grown_state


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
    - A vector does not join a group that is for matrices only (Muon), but one that holds vectors. The bias of a branch
      whose layer has none joins biases and norms, where they have a group that differs in weight decay only, as
      Trainer's.

    Args:
        optimizer (`Optimizer` or `AcceleratedOptimizer`): The optimizer.
        changes ([`Changes`]): What happened to the parameters.
        order (`Sequence[nn.Parameter]`): All parameters of the grown model in canonical order.

    Raises:
        ValueError: If the optimizer lacks a parameter that it should train, or has state that cannot be carried. The
            optimizer is unchanged then.
    """
    optimizer = inner_optimizer(optimizer)
    rules = rules_of(optimizer)
    held = set(held_parameters(optimizer))
    needed = [(change.name, change.old) for change in changes.replaced]
    needed += [(change.name, change.sibling) for change in changes.added]
    for change in changes.added:
        if change.new.requires_grad and not change.sibling.requires_grad and change.sibling not in held:
            raise ValueError(
                f"{change.name} is to be trained, but what it is like is frozen and not held by the optimizer: it "
                "has no group. Make the optimizer anew after the growth, or before anything is frozen."
            )
    for name, parameter in needed:
        if parameter.requires_grad and parameter not in held:
            raise ValueError(
                f"The optimizer does not hold {name}, which requires a gradient. Give the optimizer that trains this "
                "model (was it made before an earlier growth, or for a copy?), or freeze the parameter."
            )
    grown: dict[Any, tuple[nn.Parameter, dict[str, Any]]] = {
        change.old: (change.new, grown_state(change, rules, optimizer.state))
        for change in changes.replaced
        if change.old in optimizer.state
    }
    started = {
        change.new: first_state(change, rules, optimizer.state[change.sibling])
        for change in changes.added
        if rules.shared_steps and change.new.requires_grad and change.sibling in optimizer.state
    }
    gone = set(changes.removed)
    before: dict[Any, Any] = dict(optimizer.state)
    after: dict[Any, Any] = dict(grown.get(old, (old, state)) for old, state in before.items() if old not in gone)
    after |= started
    # Everything is computed before the first assignment, so that nothing has changed if that fails.
    for group, parameters, names in list(_grown_groups(optimizer, rules, changes, order)):
        group["params"][:] = parameters
        if names is not None:
            group["param_names"] = names
    optimizer.state.clear()
    optimizer.state.update(after)


def held_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """What an optimizer trains, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_without_decay(group: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether most of a group are vectors, and all its settings but weight decay are those of another one."""
    named = (group.keys() | other.keys()) - {"params", "param_names", "weight_decay"}
    alike = all(group.get(name) == other.get(name) for name in named)
    vectors = sum(parameter.dim() < 2 for parameter in group["params"])
    return alike and 2 * vectors > len(group["params"])


def _grown_groups(
    optimizer: Optimizer, rules: Rules, changes: Changes, order: Sequence[nn.Parameter]
) -> Iterator[tuple[dict[str, Any], list[nn.Parameter], list[str] | None]]:
    """Every group, with its parameters and their names after the changes."""
    rank = {parameter: index for index, parameter in enumerate(order)}
    replaced = {change.old: change.new for change in changes.replaced}
    home = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    vectors = vector_group(optimizer, rules)

    def joins(change: Added, group: dict[str, Any]) -> bool:
        own = home.get(change.sibling)
        if own is not None and not rules.holds_vectors(own) and change.new.dim() < 2:
            own = vectors
        elif own is not None and change.name.endswith("bias") and change.sibling.dim() > 1:
            # Of a layer that has no bias: it goes where biases and norms are, if they have a group without decay.
            own = next((each for each in optimizer.param_groups if _is_without_decay(each, own)), own)
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
