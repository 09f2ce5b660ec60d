"""Residual pairs become single rows once the growing is over: the same function, fewer parameters."""

import torch
from torch import nn
from torch.optim import Optimizer

from ...models.growable import GrowableLinear, PairedLinear, SkipBranch
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.parameters import follow_
from ..counting import count_macs, count_parameters
from ..optimizer.state import carry_optimizer_state_
from ..records.event import GrowthEvent
from ..records.history import GrowthHistory
from .attachments import check_attachments
from .changes import Changes, Replaced
from .grow import check_model, versions
from .slices import Axis
from .snapshot import all_or_nothing


@torch.no_grad()
def merge_pairs_(model: GrowablePreTrainedModel, optimizer: Optimizer | None = None) -> GrowthEvent:
    """
    Replace each residual pair by the sum of its two rows, which is all that enters the network. Outputs stay equal bit
    for bit; the model's branch units are of kind `"residual"` afterwards and cannot grow in depth any more.

    In training, the merged row moves half as fast as the pair did, whose rows both followed the same gradient.

    Args:
        model ([`GrowablePreTrainedModel`]): The model, grown by `residual_pair`.
        optimizer (`Optimizer`, *optional*): The optimizer that trains it; merged rows keep the state of the first row.

    Returns:
        [`GrowthEvent`]: The record, which is also appended to `model.growth_history`.

    Raises:
        ValueError: If the model has no residual pairs, or the optimizer cannot follow. Nothing has changed then.
    """
    check_model(model)
    branches = [site.module.skip for site in model.growable_linears() if site.module.skip is not None]
    if not branches or model.config.skip_unit != "residual_pair":
        raise ValueError("The model has no residual pairs to merge; only the operator `residual_pair` makes them.")
    paths = {site.path for site in model.growable_linears() if site.module.skip is not None}
    check_attachments(model, paths)
    history = GrowthHistory.from_model(model)
    before, macs, shapes = count_parameters(model), count_macs(model), model.shapes()
    names = {parameter: name for name, parameter in model.named_parameters()}
    changes = Changes()
    with all_or_nothing(model, optimizer):
        for branch in branches:
            branch.linear = _merged(branch, changes, names)
            branch.kind = "residual"
        shapes.write_(model.config, "residual")
        if optimizer is not None:
            carry_optimizer_state_(optimizer, changes, list(model.parameters()))
        event = GrowthEvent(
            operators=["merge_pairs"],
            parameters_before=before,
            parameters_after=count_parameters(model),
            macs_before=macs,
            macs_after=macs,
            skip_unit="residual",
            shapes=shapes,
            versions=versions(),
            replaced={change.old: change.new for change in changes.replaced},
        )
        history.append(event)
        history.attach_(model)
    changes.watch_()
    return event


def _merged(branch: SkipBranch, changes: Changes, names: dict[nn.Parameter, str]) -> GrowableLinear:
    """The linear of a branch with summed rows, which keeps the branch nested in it."""
    pair = branch.linear
    assert isinstance(pair, PairedLinear)
    with torch.device("meta"):
        merged = GrowableLinear(pair.in_features, pair.out_features)
    for name in ("weight", "bias"):
        old, twin = pair._parameters[name], pair._parameters[f"twin_{name}"]
        assert old is not None and twin is not None
        if old.requires_grad != twin.requires_grad:
            raise ValueError(
                f"{names[old]} and its twin are one row once they are merged: train both, or freeze both."
            )
        new = follow_(nn.Parameter(old + twin), old)
        merged._parameters[name] = new
        axes = tuple(Axis.unchanged(size) for size in old.shape)
        changes.replaced.append(Replaced(names[old], old, new, axes, merged=twin))
        changes.removed.append(twin)
    if pair.skip is not None:
        merged.skip = pair.skip
    return merged.train(pair.training)
