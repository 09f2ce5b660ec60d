"""Drafted parameters take their place in the modules of a model."""

from typing import Any

import torch
from torch import nn

from ...models.growable import SkipBranch
from ...models.heads import fit_table_
from ...models.parameters import follow_
from .changes import Added, Changes, Replaced
from .drafts import BranchDraft, LinearDraft
from .entries import EntriesDraft
from .slices import ParameterDraft, like_format


def install_(linear: LinearDraft, kind: str, activation: str, changes: Changes) -> None:
    """
    Give a layer, what is nested in it and the norms of its neurons the parameters of their drafts.

    Args:
        linear ([`LinearDraft`]): The draft of a layer that exists.
        kind (`str`): Kind of the branch units that the model will have.
        activation (`str`): Activation of the units, a name in transformers' `ACT2FN`.
        changes ([`Changes`]): Is told what happens to every parameter.
    """
    module = linear.module
    assert module is not None
    for name, draft in linear.parameters.items():
        if draft.touched:
            # Assigned to the key that is there, which keeps the order of the parameters.
            module._parameters[name] = _replacement(f"{linear.path}.{name}", draft, changes)
    module.fit_sizes_()
    for entries in linear.beside:
        _install_entries_(entries, changes)
    branch = linear.branch
    if branch is None:
        return
    if branch.module is None:
        module.skip = _new_branch(linear, branch, kind, activation, changes)
        return
    if branch.gain is not None and branch.gain.touched:
        branch.module._parameters["gain"] = _replacement(f"{linear.path}.skip.gain", branch.gain, changes)
    # Moved as well as appended to: where a layer holds several parts, the neurons behind a part that grows move up.
    branch.module.target = branch.target.to(branch.module.target.device)
    branch.module.neurons = linear.neurons
    branch.module.check_targets_(f"{linear.path}.skip.target")
    install_(branch.linear, kind, activation, changes)


def _install_entries_(entries: EntriesDraft, changes: Changes) -> None:
    module: Any = entries.module
    for name, draft in entries.parameters.items():
        if draft.touched:
            module._parameters[name] = _replacement(f"{entries.path}.{name}", draft, changes)
    module._buffers.update(entries.buffers)
    values = (*entries.buffers.values(), *(draft.value for draft in entries.parameters.values()))
    size = values[0].shape[entries.axis]
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        module.num_features = size
    fit_table_(module, size)


def check_changes(changes: Changes) -> None:
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
        if not new.is_meta and not bool(torch.isfinite(new).all()):
            raise ValueError(
                f"{name} would have values that are not finite after the growth. Check the weights of the model "
                "and the steps of the plan."
            )


def _new_branch(linear: LinearDraft, branch: BranchDraft, kind: str, activation: str, changes: Changes) -> SkipBranch:
    """A branch whose units are as drafted; made on the meta device, which draws no random numbers."""
    assert linear.module is not None
    module = SkipBranch(linear.module, (len(branch.target),), kind, activation, torch.device("meta"))
    for name, draft in branch.linear.parameters.items():
        # A unit's row is trained as its neuron's row is, its bias as the neuron's bias, where there is one.
        like = "bias" if name in ("bias", "twin_bias") and "bias" in linear.parameters else "weight"
        path = f"{branch.linear.path}.{name}"
        module.linear._parameters[name] = _addition(path, draft, linear.parameters[like], changes)
    if branch.gain is not None:
        module._parameters["gain"] = _addition(
            f"{linear.path}.skip.gain", branch.gain, linear.parameters["weight"], changes
        )
    # Of a model without values it stays where it is.
    module.target = branch.target if linear.weight.is_meta else branch.target.to(linear.weight.device)
    module.check_targets_(f"{linear.path}.skip.target")
    return module.train(linear.module.training)


def _replacement(name: str, draft: ParameterDraft, changes: Changes) -> nn.Parameter:
    assert draft.old is not None
    new = follow_(nn.Parameter(like_format(draft.value, draft.old)), draft.old)
    changes.replaced.append(Replaced(name, draft.old, new, tuple(draft.axes)))
    return new


def _addition(name: str, draft: ParameterDraft, sibling: ParameterDraft, changes: Changes) -> nn.Parameter:
    assert sibling.old is not None
    new = follow_(nn.Parameter(like_format(draft.value, sibling.old)), sibling.old)
    changes.added.append(Added(name, new, sibling.old))
    return new
