"""Layers with their branches, readers and norms as they will be, drafted without touching the modules."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...models.growable import Growable, SkipBranch
from ...models.layouts import LAYOUTS, Layout
from ...models.sites import inner_path
from .entries import EntriesDraft
from .slices import NEW, ParameterDraft


class LinearDraft:
    """
    A growable layer with its branches, to be changed without touching the modules.

    Rows are given in coordinates `[x; 1]` of the input, or of a patch of it: `d` weights and a bias, which a layer
    without biases ignores.

    Args:
        path (`str`): Path of the layer in the model.
        module (`Growable`, *optional*): The layer; `None` for one that the event makes.
        layout (`Layout`): Where rows and columns of its weight are.
        parameters (`dict[str, ParameterDraft]`): `weight`, `bias` where there is one, and the twins of pairs.

    Attributes:
        branch ([`BranchDraft`], *optional*): The units that feed its neurons.
        owner ([`BranchDraft`], *optional*): The branch whose units its neurons are.
        partners (`list[LinearDraft]`): Layers that have a row for each of its neurons too, as that of gates has `up`.
        beside (`list[EntriesDraft]`): What has an entry for each of its neurons, or of the heads that they are of.
        readers (`list[LinearDraft]`): The layers whose inputs its neurons are, where they are hidden ones.
    """

    def __init__(self, path: str, module: Growable | None, layout: Layout, parameters: dict[str, ParameterDraft]):
        self.path = path
        self.module = module
        self.layout = layout
        self.parameters = parameters
        self.branch: BranchDraft | None = None
        self.owner: BranchDraft | None = None
        self.partners: list[LinearDraft] = []
        self.beside: list[EntriesDraft] = []
        self.readers: list[LinearDraft] = []

    @classmethod
    def of(cls, path: str, module: Growable) -> "LinearDraft":
        """The draft of a layer as it is."""
        names = ("weight", "bias", "twin_weight", "twin_bias")
        own = {name: value for name, value in module.named_parameters(recurse=False) if name in names}
        draft = cls(path, module, module.layout, {name: ParameterDraft(value, value) for name, value in own.items()})
        draft.branch = None if module.skip is None else BranchDraft.of(path, module.skip)
        return draft

    @property
    def weight(self) -> Tensor:
        """The weight as it will be; of pairs only that of the first rows."""
        return self.parameters["weight"].value

    @property
    def neurons(self) -> int:
        """The number of rows as it will be."""
        return self.weight.shape[self.layout.rows]

    def chain(self) -> "Iterator[LinearDraft]":
        """This layer and those of the branches nested in it: all that are fed by the same input."""
        yield self
        if self.branch is not None:
            yield from self.branch.linear.chain()

    def nested(self, depth: int) -> "LinearDraft":
        """The layer of the branch that is nested `depth` times in this one."""
        return next(islice(self.chain(), depth, None))

    def affine(self, neurons: Tensor) -> Tensor:
        """
        Rows of neurons in all layers that have one, side by side, in float32 or better.

        Args:
            neurons (`Tensor`): The neurons, shape `(k,)`.

        Returns:
            `Tensor`: Shape `(k, R (d + 1))` for `R` layers; biases that there are not are 0.
        """
        parts = []
        for linear in (self, *self.partners):
            own = neurons.to(linear.weight.device)
            weight = linear.layout.matrix(linear.weight).index_select(0, own)
            bias = linear.parameters["bias"].value.index_select(0, own) if "bias" in linear.parameters else None
            parts += [weight, weight.new_zeros(len(own), 1) if bias is None else bias[:, None]]
        rows = torch.cat(parts, 1)
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def copy_neurons_(self, neurons: Tensor, rows: Tensor) -> None:
        """
        Replace neurons by two copies, each of which counts half.

        Args:
            neurons (`Tensor`): The neurons, distinct.
            rows (`Tensor`): Those of originals and then of copies, as `affine` has them, shape `(2k, R (d + 1))`.
        """
        if self.owner is not None:
            self.owner.copy_units_(neurons)
        for linear, own in self._parts(rows):
            linear.copy_rows_(neurons, own)
        for entries in self.beside:
            entries.copy_(neurons)
        for reader in self.readers:
            reader.halve_columns_(neurons)

    def append_neurons_(self, rows: Tensor) -> None:
        """Append neurons that nothing reads yet, with rows as `affine` has them."""
        for linear, own in self._parts(rows):
            linear.append_rows_(own)
        for reader in self.readers:
            reader.append_columns_(len(rows))

    def native(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of shape `(k, d + 1)` as a weight of `k` neurons, and their biases, shape `(k,)`."""
        return self.layout.weight(rows[:, :-1], self.weight), rows[:, -1]

    def _parts(self, rows: Tensor) -> "Iterator[tuple[LinearDraft, Tensor]]":
        """Every layer that has rows of the neurons, with its own part of them."""
        linears = (self, *self.partners)
        return zip(linears, rows.chunk(len(linears), dim=1), strict=True)

    def append_rows_(self, rows: Tensor) -> None:
        """Append rows, shape `(k, d + 1)`."""
        weight, bias = self.native(rows)
        self.parameters["weight"].append_(weight, self.layout.rows)
        if "bias" in self.parameters:
            self.parameters["bias"].append_(bias)

    def append_columns_(self, count: int) -> None:
        """Append inputs that count nothing, for this layer and the branches nested in it."""
        for weight, dim in self._columns():
            weight.append_zeros_(count, dim)

    def halve_columns_(self, columns: Tensor) -> None:
        """Replace inputs by two copies, each of which counts half, for this layer and the branches nested in it."""
        for weight, dim in self._columns():
            weight.copy_(dim, columns, scale=0.5)

    def _columns(self) -> Iterator[tuple[ParameterDraft, int]]:
        """The weights that have a column for each input, and the dimension that it is on."""
        for linear in self.chain():
            for name in ("weight", "twin_weight"):
                if name in linear.parameters:
                    yield linear.parameters[name], linear.layout.columns

    def copy_rows_(self, indices: Tensor, rows: Tensor | None = None) -> None:
        """
        Append a copy of each row, which takes half of the row's gradient, and of the units that feed it.

        Args:
            indices (`Tensor`): Rows, distinct.
            rows (`Tensor`, *optional*): Weights and biases of originals and then of copies, shape `(2k, d + 1)`.
        """
        size = self.neurons
        values = {} if rows is None else dict(zip(("weight", "bias"), self.native(rows), strict=True))
        for name, parameter in self.parameters.items():
            dim = self.layout.rows if name.endswith("weight") else 0
            parameter.copy_(dim, indices, share=0.5, values=values.get(name))
        if self.branch is not None:
            self.branch.follow_copies_(size, indices)


class BranchDraft:
    """The units that feed a layer's neurons."""

    def __init__(self, module: SkipBranch | None, linear: LinearDraft, gain: ParameterDraft | None, target: Tensor):
        self.module = module
        self.linear = linear
        self.gain = gain
        self.target = target  # (units,) int64 on the CPU
        linear.owner = self

    @classmethod
    def of(cls, path: str, module: SkipBranch) -> "BranchDraft":
        """The draft of a branch as it is; `path` is that of the layer it feeds."""
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
        linear (`LinearDraft`): The layer of the neurons.
        neurons (`Tensor`): Target of each unit, shape `(k,)`.
        rows (`Tensor`): Weights and bias of the units, shape `(k, d + 1)`.
        gains (`Tensor`, *optional*): Gains of the units, shape `(k,)`; `None` for residual units.
        paired (`bool`): Whether a row is stored together with its opposite, as in a [`PairedLinear`].
    """
    rows = rows.to(linear.weight)
    # The units of a Conv1D are an nn.Linear, whose weight is the matrix of the rows.
    transposed = linear.layout is LAYOUTS[Conv1D]
    layout = LAYOUTS[nn.Linear] if transposed else linear.layout
    weight, bias = (rows[:, :-1], rows[:, -1]) if transposed else linear.native(rows)
    # Cloned, since the bias of a single unit counts as contiguous with the stride of the row.
    weight, bias = (part.clone(memory_format=torch.contiguous_format) for part in (weight, bias))
    values = {"weight": weight, "bias": bias}
    if paired:
        values |= {"twin_weight": -values["weight"], "twin_bias": -values["bias"]}
    if linear.branch is None:
        drafts = {name: ParameterDraft.fresh(value) for name, value in values.items()}
        units = LinearDraft(inner_path(linear.path), None, layout, drafts)
        # A copy, because a plan may grow several models, which must not share memory with it.
        gain = None if gains is None else ParameterDraft.fresh(gains.to(rows, copy=True))
        linear.branch = BranchDraft(None, units, gain, neurons)
        return
    branch = linear.branch
    for name, value in values.items():
        branch.linear.parameters[name].append_(value)
    if branch.gain is not None and gains is not None:
        branch.gain.append_(gains)
    branch.target = torch.cat([branch.target, neurons])
