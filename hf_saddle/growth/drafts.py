"""Grown parameters that are not yet part of the model: new values, and where every row and column comes from."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from ..models.growable import GrowableLinear, SkipBranch
from ..models.sites import inner_path


NEW = -1  # source of a row or column that no old one continues


@dataclass(frozen=True)
class Axis:
    """How the slices of a new tensor along one dimension continue those of the old one."""

    source: Tensor  # (size,) int64 on the CPU: index into the old tensor, or NEW
    share: Tensor  # (size,) float32 on the CPU: the gradient of the slice relative to that of its source
    scale: Tensor  # (size,) float32 on the CPU: what the values of its source were multiplied by

    @classmethod
    def unchanged(cls, size: int) -> "Axis":
        """Every slice continues itself."""
        return cls(torch.arange(size), torch.ones(size), torch.ones(size))


class ParameterDraft:
    """
    The new value of a parameter and, for every dimension, the [`Axis`] that tells where its slices come from.

    Nothing is copied until the first change. All values are built by `cat` and `index_select`, which are
    deterministic on every device.
    """

    def __init__(self, value: Tensor, old: nn.Parameter | None = None):
        self.old = old
        self.value = value.detach()
        self.axes = [Axis.unchanged(size) for size in value.shape]
        self.touched = old is None

    def copy_(
        self, dim: int, indices: Tensor, *, scale: float = 1.0, share: float = 1.0, values: Tensor | None = None
    ) -> None:
        """
        Append a copy of each slice in `indices` (distinct, on the CPU) along `dim`.

        Originals and copies are multiplied by `scale`, or replaced by `values`, originals first; both see `share`
        times the gradient that the original saw.
        """
        size, count = self.value.shape[dim], len(indices)
        origin = torch.cat([torch.arange(size), indices])
        is_copy = torch.zeros(size + count, dtype=torch.bool)
        is_copy[indices] = True
        is_copy[size:] = True
        pool, order = self.value, origin
        if values is not None:
            pool = torch.cat([self.value, values.to(self.value)], dim)
            order = origin.clone()
            order[indices] = size + torch.arange(count)
            order[size:] = size + count + torch.arange(count)
        value = pool.index_select(dim, order.to(pool.device))
        if scale != 1.0:
            factor = torch.where(is_copy, scale, 1.0).to(value)
            value *= factor.view([-1 if axis == dim else 1 for axis in range(value.dim())])
        axis = self.axes[dim]
        self.value, self.touched = value, True
        shares, scales = (torch.where(is_copy, factor, 1.0) for factor in (share, scale))
        self.axes[dim] = Axis(axis.source[origin], axis.share[origin] * shares, axis.scale[origin] * scales)

    def append_(self, values: Tensor, dim: int = 0) -> None:
        """Append new slices along `dim`."""
        axis, count = self.axes[dim], values.shape[dim]
        self.value, self.touched = torch.cat([self.value, values.to(self.value)], dim), True
        new, one = torch.full((count,), NEW), torch.ones(count)
        self.axes[dim] = Axis(
            torch.cat([axis.source, new]), torch.cat([axis.share, one]), torch.cat([axis.scale, one])
        )

    def add_(self, indices: Tensor, values: Tensor) -> None:
        """Add `values` to the rows in `indices` (distinct, on the CPU); they stay the same parameters."""
        size = len(self.value)
        changed = self.value.index_select(0, indices.to(self.value.device)) + values.to(self.value)
        order = torch.arange(size)
        order[indices] = size + torch.arange(len(indices))
        self.value = torch.cat([self.value, changed]).index_select(0, order.to(self.value.device))
        self.touched = True


class LinearDraft:
    """
    A growable linear with its branches, to be changed without touching the modules.

    Args:
        path (`str`): Path of the linear in the model.
        module (`GrowableLinear`, *optional*): The linear; `None` for one that the event makes.
        parameters (`dict[str, ParameterDraft]`): `weight`, `bias` where there is one, and the twins of pairs.

    Attributes:
        branch ([`BranchDraft`], *optional*): The units that feed its neurons.
        owner ([`BranchDraft`], *optional*): The branch whose units its neurons are.
        readers (`list[LinearDraft]`): The linears whose inputs its neurons are, where they are hidden ones.
    """

    def __init__(self, path: str, module: GrowableLinear | None, parameters: dict[str, ParameterDraft]):
        self.path = path
        self.module = module
        self.parameters = parameters
        self.branch: BranchDraft | None = None
        self.owner: BranchDraft | None = None
        self.readers: list[LinearDraft] = []

    @classmethod
    def of(cls, path: str, module: GrowableLinear) -> "LinearDraft":
        """The draft of a linear as it is."""
        names = ("weight", "bias", "twin_weight", "twin_bias")
        own = {name: value for name, value in module.named_parameters(recurse=False) if name in names}
        draft = cls(path, module, {name: ParameterDraft(value, value) for name, value in own.items()})
        draft.branch = None if module.skip is None else BranchDraft.of(path, module.skip)
        return draft

    @property
    def weight(self) -> Tensor:
        """The rows as they will be, shape `(n, d)`; of pairs only the first row."""
        return self.parameters["weight"].value

    def chain(self) -> "Iterator[LinearDraft]":
        """This linear and those of the branches nested in it: all that are fed by the same input."""
        yield self
        if self.branch is not None:
            yield from self.branch.linear.chain()

    def nested(self, depth: int) -> "LinearDraft":
        """The linear of the branch that is nested `depth` times in this one."""
        return next(islice(self.chain(), depth, None))

    def copy_neurons_(self, neurons: Tensor, values: tuple[Tensor, Tensor]) -> None:
        """
        Replace neurons by two copies, each of which counts half.

        Args:
            neurons (`Tensor`): The neurons, distinct.
            values (`tuple[Tensor, Tensor]`): Weights `(2k, d)` and biases `(2k,)` of originals and copies.
        """
        if self.owner is not None:
            self.owner.copy_units_(neurons)
        self.copy_rows_(neurons, values)
        for weight in self._columns():
            weight.copy_(1, neurons, scale=0.5)

    def append_neurons_(self, rows: Tensor) -> None:
        """Append neurons with weights and bias `rows`, shape `(k, d + 1)`, that nothing reads yet."""
        self.parameters["weight"].append_(rows[:, :-1])
        self.parameters["bias"].append_(rows[:, -1])
        for weight in self._columns():
            weight.append_(weight.value.new_zeros(len(weight.value), len(rows)), 1)

    def _columns(self) -> "Iterator[ParameterDraft]":
        """The weights that have a column for each neuron of this linear."""
        for reader in self.readers:
            for linear in reader.chain():
                yield from (linear.parameters[name] for name in ("weight", "twin_weight") if name in linear.parameters)

    def copy_rows_(self, indices: Tensor, values: tuple[Tensor, Tensor] | None = None) -> None:
        """
        Append a copy of each row, which takes half of the row's gradient, and of the units that feed it.

        Args:
            indices (`Tensor`): Rows, distinct.
            values (`tuple[Tensor, Tensor]`, *optional*): Weights `(2k, d)` and biases `(2k,)` of originals and copies.
        """
        size = len(self.weight)
        for name, parameter in self.parameters.items():
            new = None if values is None else values[name == "bias"]
            parameter.copy_(0, indices, share=0.5, values=new)
        if self.branch is not None:
            self.branch.follow_copies_(size, indices)


class BranchDraft:
    """The units that feed a linear's neurons."""

    def __init__(self, module: SkipBranch | None, linear: LinearDraft, gain: ParameterDraft | None, target: Tensor):
        self.module = module
        self.linear = linear
        self.gain = gain
        self.target = target  # (units,) int64 on the CPU
        linear.owner = self

    @classmethod
    def of(cls, path: str, module: SkipBranch) -> "BranchDraft":
        """The draft of a branch as it is; `path` is that of the linear it feeds."""
        linear = LinearDraft.of(inner_path(path), module.linear)
        gain = None if module.gain is None else ParameterDraft(module.gain, module.gain)
        return cls(module, linear, gain, module.target.cpu())

    def follow_copies_(self, size: int, neurons: Tensor) -> None:
        """Copy the units of `neurons`, whose own copies start at neuron `size`."""
        copy_of = torch.full((size,), NEW)
        copy_of[neurons] = size + torch.arange(len(neurons))
        units = torch.nonzero(copy_of[self.target] != NEW).flatten()
        if not len(units):
            return
        self.target = torch.cat([self.target, copy_of[self.target[units]]])
        if self.gain is not None:
            self.gain.copy_(0, units, share=0.5)
        self.linear.copy_rows_(units)

    def copy_units_(self, units: Tensor) -> None:
        """Let units with gains and their copies, for the same neuron, have half the gain each."""
        assert self.gain is not None
        self.target = torch.cat([self.target, self.target[units]])
        self.gain.copy_(0, units, scale=0.5)


def add_units_(linear: LinearDraft, neurons: Tensor, rows: Tensor, gains: Tensor | None, paired: bool) -> None:
    """
    Feed `neurons` by new units.

    Args:
        linear (`LinearDraft`): The linear of the neurons.
        neurons (`Tensor`): Target of each unit, shape `(k,)`.
        rows (`Tensor`): Weights and bias of the units, shape `(k, d + 1)`.
        gains (`Tensor`, *optional*): Gains of the units, shape `(k,)`; `None` for residual units.
        paired (`bool`): Whether a row is stored together with its opposite, as in a [`PairedLinear`].
    """
    rows = rows.to(linear.weight)
    # Cloned, since the bias of a single unit counts as contiguous with the stride of the row.
    weight, bias = (part.clone(memory_format=torch.contiguous_format) for part in (rows[:, :-1], rows[:, -1]))
    values = {"weight": weight, "bias": bias}
    if paired:
        values |= {"twin_weight": -values["weight"], "twin_bias": -values["bias"]}
    if linear.branch is None:
        drafts = {name: _fresh(value) for name, value in values.items()}
        units = LinearDraft(inner_path(linear.path), None, drafts)
        # A copy, because a plan may grow several models, which must not share memory with it.
        gain = None if gains is None else _fresh(gains.to(rows, copy=True))
        linear.branch = BranchDraft(None, units, gain, neurons)
        return
    branch = linear.branch
    for name, value in values.items():
        branch.linear.parameters[name].append_(value)
    if branch.gain is not None and gains is not None:
        branch.gain.append_(gains)
    branch.target = torch.cat([branch.target, neurons])


def _fresh(value: Tensor) -> ParameterDraft:
    draft = ParameterDraft(value)
    draft.axes = [Axis(torch.full_like(axis.source, NEW), axis.share, axis.scale) for axis in draft.axes]
    return draft
