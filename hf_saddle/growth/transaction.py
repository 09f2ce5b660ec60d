"""All or nothing: a growth is computed completely before the first pointer of the model changes, and can be undone."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..models.configuration_saddle import SaddleConfig
from ..models.growable import SkipBranch
from ..models.modeling_saddle import GrowablePreTrainedModel, set_shapes
from ..models.parameters import follow_
from .drafts import BranchDraft, LinearDraft, ParameterDraft
from .optimizer_state import Added, Changes, Replaced, optimizer_swaps


Swap = tuple[Callable[[], None], Callable[[], None]]


class Transaction:
    """
    A list of assignments, each with the one that undoes it. If one of them fails, those before it are undone.

    Everything that needs memory or can fail is done before, while the list is made.
    """

    def __init__(self, swaps: list[Swap]):
        self.swaps = swaps
        self.done: list[Callable[[], None]] = []

    def commit_(self) -> None:
        """Do all assignments."""
        try:
            for apply, undo in self.swaps:
                self.done.append(undo)
                apply()
        except BaseException:
            self.rollback_()
            raise

    def rollback_(self) -> None:
        """Undo what was done, last first. Valid until the model or the optimizer is used."""
        while self.done:
            self.done.pop()()


def swap_parameter(module: nn.Module, name: str, new: nn.Parameter) -> Swap:
    """Assign a parameter of a module, keeping its place in the order of the module's parameters."""
    old = module._parameters[name]

    def assign(value: nn.Parameter | None) -> Callable[[], None]:
        return lambda: module._parameters.__setitem__(name, value)

    return assign(new), assign(old)


def swap_attribute(owner: Any, name: str, new: Any) -> Swap:
    """Assign an attribute."""
    old = getattr(owner, name)
    return (lambda: setattr(owner, name, new)), (lambda: setattr(owner, name, old))


class Rebuild:
    """
    From drafts to new parameters and the assignments that put them in place.

    Attributes:
        swaps (`list[Swap]`): The assignments to the modules.
        changes ([`Changes`]): What happens to every parameter that changes.
    """

    def __init__(self, unit: str, activation: str):
        self.unit = unit
        self.activation = activation
        self.swaps: list[Swap] = []
        self.changes = Changes()

    def add_(self, linear: LinearDraft) -> None:
        """Take in the draft of a linear that exists, with all that is nested in it."""
        module = linear.module
        assert module is not None
        for name, draft in linear.parameters.items():
            if draft.touched:
                self.swaps.append(swap_parameter(module, name, self._replace_(f"{linear.path}.{name}", draft)))
        rows, inputs = linear.weight.shape
        if (rows, inputs) != (module.out_features, module.in_features):
            self.swaps += [swap_attribute(module, "out_features", rows), swap_attribute(module, "in_features", inputs)]
        if linear.branch is None:
            return
        if linear.branch.module is None:
            # `skip` is an ordinary attribute while it is None, and a registered module afterwards.
            branch = self._new_branch(linear, linear.branch)

            def attach() -> None:
                module.skip = branch

            def detach() -> None:
                del module.skip
                module.skip = None

            self.swaps.append((attach, detach))
            return
        self._add_branch_(linear, linear.branch, linear.branch.module)

    def _add_branch_(self, linear: LinearDraft, branch: BranchDraft, module: SkipBranch) -> None:
        if branch.gain is not None and branch.gain.touched:
            gain = self._replace_(f"{linear.path}.skip.gain", branch.gain)
            self.swaps.append(swap_parameter(module, "gain", gain))
        if len(branch.target) != len(module.target):
            target = branch.target.to(module.target.device)
            self.swaps.append(swap_attribute(module, "target", target))
        shared = branch.target.unique().numel() < branch.target.numel()
        self.swaps.append(swap_attribute(module, "shared_targets", shared))
        self.swaps.append(swap_attribute(module, "neurons", len(linear.weight)))
        self.add_(branch.linear)

    def _new_branch(self, linear: LinearDraft, branch: BranchDraft) -> SkipBranch:
        """A branch whose units are as drafted; made on the meta device, which draws no random numbers."""
        assert linear.module is not None
        rows, inputs = linear.weight.shape
        with torch.device("meta"):
            module = SkipBranch(inputs, rows, (len(branch.target),), self.unit, self.activation)
        own = linear.module._parameters
        weight, bias = own["weight"], own["bias"]
        assert weight is not None
        for name, draft in branch.linear.parameters.items():
            # A unit's row is trained as its neuron's row is, its bias as the neuron's bias, where there is one.
            sibling = bias if name.endswith("bias") and bias is not None else weight
            path = f"{branch.linear.path}.{name}"
            module.linear._parameters[name] = self._create_(path, draft, sibling)
        if branch.gain is not None:
            module._parameters["gain"] = self._create_(f"{linear.path}.skip.gain", branch.gain, weight)
        module.target = branch.target.to(weight.device)
        module.check_targets_(f"{linear.path}.skip.target")
        return module.train(linear.module.training)

    def _replace_(self, name: str, draft: ParameterDraft) -> nn.Parameter:
        assert draft.old is not None
        new = follow_(nn.Parameter(draft.value), draft.old)
        self.changes.replaced.append(Replaced(name, draft.old, new, tuple(draft.axes)))
        return new

    def _create_(self, name: str, draft: ParameterDraft, sibling: nn.Parameter) -> nn.Parameter:
        new = follow_(nn.Parameter(draft.value), sibling)
        self.changes.added.append(Added(name, new, sibling))
        return new


def _check_ready(changes: Changes) -> None:
    """
    Verify that parameters may be exchanged now.

    Raises:
        ValueError: If parameters hold gradients, which would be lost, or would not be finite.
    """
    for change in changes.replaced:
        if change.old.grad is not None and bool(change.old.grad.any()):
            raise ValueError(
                f"{change.name} holds a gradient, which a growth would lose. Grow after `optimizer.step()` and "
                "`optimizer.zero_grad()`."
            )
    grown = [(change.name, change.new) for change in changes.replaced]
    for name, new in grown + [(change.name, change.new) for change in changes.added]:
        if not bool(torch.isfinite(new).all()):
            raise ValueError(
                f"{name} would have values that are not finite after the growth. Check the weights of the model "
                "and the steps of the plan."
            )


def growth_swaps(
    model: GrowablePreTrainedModel, rebuild: Rebuild, unit: str, optimizer: Optimizer | None
) -> tuple[list[Swap], dict[int, dict[str, Any]]]:
    """
    The assignments to modules, config and optimizer; the model is as before when this returns.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        rebuild ([`Rebuild`]): Its new parameters.
        unit (`str`): Kind of the branch units that it will have.
        optimizer (`Optimizer`, *optional*): The optimizer that follows.

    Returns:
        `tuple[list[Swap], dict]`: The assignments, and the shapes that the model will have.

    Raises:
        ValueError: If the optimizer cannot follow, or the shapes are beyond the config's limits.
    """
    _check_ready(rebuild.changes)
    trial = Transaction(rebuild.swaps)
    try:
        trial.commit_()
        order, shapes = list(model.parameters()), model.shapes()
    finally:
        trial.rollback_()
    # On a copy first: what the config refuses is refused now.
    set_config_(copy.deepcopy(model.config), shapes, unit)
    config, old_shapes, old_unit = model.config, model.shapes(), model.config.skip_unit
    swaps = [
        *rebuild.swaps,
        ((lambda: set_config_(config, shapes, unit)), (lambda: set_config_(config, old_shapes, old_unit))),
    ]
    if optimizer is not None:
        swaps += optimizer_swaps(optimizer, rebuild.changes, order)
    return swaps, shapes


def set_config_(config: SaddleConfig, shapes: dict[int, dict[str, Any]], unit: str) -> None:
    """Assign the shapes of all layers and the kind of their branch units."""
    config.skip_unit = unit
    set_shapes(config, shapes)
