"""Growable layers: affine layers of three kinds whose neurons may have skip branches, which are growable too."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from .layouts import LAYOUTS, Layout, layout_of


SKIP_UNITS = ("gain", "residual_pair", "residual")


class Growable(nn.Module):
    """
    A mixin for an affine layer whose neurons may be fed by a *skip branch* on the layer's own input.

    `z = affine(x) + sum_j r_j(x) e_target(j)`, where unit `j` of the branch responds with `r_j` (see [`SkipBranch`]).
    Without a branch it has the parameters, names and outputs of the layer that it is mixed with. See
    [`make_growable_`] for layers that exist.

    Attributes:
        layout ([`Layout`]): Where its neurons and inputs are.
        skip ([`SkipBranch`], *optional*): The branch; a new layer has none.
    """

    layout: ClassVar[Layout]
    # Of convolutions in branches: whether every unit has its own input channels, those of the group of its target.
    grouped_units = False
    skip: "SkipBranch | None"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.skip = None

    @property
    def neurons(self) -> int:
        """Number of neurons, or output channels."""
        return int(getattr(self, self.layout.outputs))

    @property
    def skip_sizes(self) -> list[int]:
        """Widths of the nested branches, outermost first; the length is the depth that was added."""
        if self.skip is None:
            return []
        nested = growable_in(self.skip.linear)
        return [self.skip.target.numel(), *([] if nested is None else nested.skip_sizes)]

    def fit_sizes_(self) -> None:
        """Let the attributes that state the layer's sizes say what its weight has, once that is another one."""
        layer: Any = self
        rows, columns = (layer.weight.shape[axis] for axis in (self.layout.rows, self.layout.columns))
        groups = 1
        if isinstance(layer, nn.Conv2d):
            groups = layer.groups = rows if self.grouped_units else int(layer.groups)
        setattr(self, self.layout.outputs, rows)
        setattr(self, self.layout.inputs, columns * groups)

    def project(self, x: Tensor) -> Tensor:
        """The affine part, without the branch."""
        z: Tensor = super().forward(x)
        return z

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip
        if skip is None:
            return self.project(x)
        channel, target = self.layout.channel, skip.target
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
            # Optimizers of graphs take a scatter that meets every neuron for an assignment: a product cannot be lost.
            z = self.project(x)
            answers: Tensor = skip(x).to(z.dtype)
            neurons = torch.arange(z.shape[channel], device=z.device)
            chosen = (target.unsqueeze(-1) == neurons).to(z.dtype)
            return z + (answers.movedim(channel, -1) @ chosen).movedim(-1, channel)
        # Of more dimensions than two a linear gives a view of its product, and autograd would pay for an addition in
        # place to a view with a copy of the gradient.
        flat = channel == -1 and x.dim() > 2 and x.is_contiguous()
        z = self.project(x.flatten(0, -2) if flat else x)
        response: Tensor = skip(x).to(z.dtype)
        if flat:
            response = response.flatten(0, -2)
        # `z` and the zeros are fresh, so they may be added to in place, which saves a copy.
        if skip.shared_targets:
            # Units of one neuron are summed before they meet z, so that opposed units cancel without a rounding error.
            z = z + torch.zeros_like(z).index_add_(channel, target, response)
        else:
            z = z.index_add_(channel, target, response)
        return z.view(*x.shape[:-1], z.shape[-1]) if flat else z


class GrowableLinear(Growable, nn.Linear):
    """A growable `nn.Linear`, see [`Growable`]."""

    layout = LAYOUTS[nn.Linear]


class GrowableConv1D(Growable, Conv1D):
    """A growable `Conv1D`, GPT-2's linear layer with a transposed weight, see [`Growable`]."""

    layout = LAYOUTS[Conv1D]


class GrowableConv2d(Growable, nn.Conv2d):
    """A growable `nn.Conv2d`, see [`Growable`]; its neurons are the output channels."""

    layout = LAYOUTS[nn.Conv2d]


class PairedLinear(GrowableLinear):
    """
    A `GrowableLinear` whose rows are stored as the sum of two: `W = W⁺ + W⁻` (`weight` and `twin_weight`).

    This is the residual pair of arXiv 2402.12418, Eq. 3. The two rows of a pair enter the network only through their
    sum, so they are added before the product, which halves its cost.
    """

    def __init__(self, in_features: int, out_features: int, **kwargs: Any):
        super().__init__(in_features, out_features, **kwargs)
        self.twin_weight = nn.Parameter(torch.empty_like(self.weight).copy_(-self.weight.detach()))
        self.twin_bias = nn.Parameter(torch.empty_like(self.bias).copy_(-self.bias.detach()))

    def project(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.twin_weight, self.bias + self.twin_bias)


class SkipBranch(nn.Module):
    """
    Units fed by the input of an affine layer, each adding its response to the pre-activation of one of its neurons.

    With the unit's pre-activation `s_j = p_j · x + b_j` and the activation `φ`, a unit of kind

    - `"gain"` responds with `a_j φ(s_j)`, where the gain `a_j` is trained,
    - `"residual_pair"` responds with `s_j + φ(s_j)`, where `p_j` is stored as the sum of two rows (arXiv 2402.12418,
      Eq. 3); only linear layers have such units,
    - `"residual"` responds with `s_j + φ(s_j)` of a single row: what merged pairs become.

    The units of a convolution are convolutions of the same kernel, stride, padding and dilation; where the layer has
    groups, a unit sees the input channels of the group of its target.

    Args:
        owner (`nn.Module`): The affine layer that the branch belongs to, which gives its geometry, dtype and device.
        sizes (`Sequence[int]`): Number of units, then the widths of the branches nested in `linear`.
        kind (`str`): Kind of unit, one of `SKIP_UNITS`.
        activation (`str`): The activation `φ`, a name in transformers' `ACT2FN`.
        device (`torch.device`, *optional*): Another device than that of the layer.
    """

    def __init__(
        self, owner: Any, sizes: Sequence[int], kind: str, activation: str, device: torch.device | None = None
    ):
        super().__init__()
        if kind not in SKIP_UNITS:
            raise ValueError(f"`skip_unit` must be one of {SKIP_UNITS}, got {kind!r}.")
        layout, units = layout_of(owner), sizes[0]
        self.kind = kind
        self.neurons = int(getattr(owner, layout.outputs))
        self.channel = layout.channel
        where: dict[str, Any] = {"device": device or owner.weight.device, "dtype": owner.weight.dtype}
        # Input channels of a unit and neurons of a group, where a unit does not see all inputs.
        self.group_inputs = self.group_neurons = 0
        self.linear: Growable
        if isinstance(owner, nn.Conv2d):
            self.linear = self._convolution(owner, units, where)
        else:
            rows = PairedLinear if kind == "residual_pair" else GrowableLinear
            self.linear = rows(getattr(owner, layout.inputs), units, **where)
        self.linear.skip = SkipBranch(self.linear, sizes[1:], kind, activation) if len(sizes) > 1 else None
        self.activation = ACT2FN[activation]
        self.gain = nn.Parameter(torch.zeros(units, **where)) if kind == "gain" else None
        self.target: Tensor
        self.register_buffer("target", torch.arange(units, device=where["device"]) % self.neurons)
        self.shared_targets = units > self.neurons

    def _convolution(self, owner: nn.Conv2d, units: int, where: dict[str, Any]) -> "GrowableConv2d":
        if self.kind == "residual_pair":
            raise ValueError(
                "Residual pairs are made for linear layers only, not for convolutions: use units with a gain "
                '(`skip_unit="gain"`, operator `zero_gain`).'
            )
        grouped = owner.groups > 1 or (isinstance(owner, Growable) and owner.grouped_units)
        if grouped:
            self.group_inputs = owner.in_channels // owner.groups
            self.group_neurons = owner.out_channels // owner.groups
        made = GrowableConv2d(
            units * self.group_inputs if grouped else owner.in_channels,
            units,
            owner.kernel_size,
            stride=owner.stride,
            padding=owner.padding,
            dilation=owner.dilation,
            padding_mode=owner.padding_mode,
            groups=units if grouped else 1,
            **where,
        )
        made.grouped_units = grouped
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Responses of the units, in the shape of the layer's output with a channel for each unit."""
        if self.group_inputs:
            first = self.target // self.group_neurons * self.group_inputs
            own = first.unsqueeze(-1) + torch.arange(self.group_inputs, device=first.device)
            x = x.index_select(self.channel, own.flatten())
        pre_activation: Tensor = self.linear(x)
        response: Tensor = self.activation(pre_activation)
        if self.gain is None:
            return pre_activation + response
        return self.gain.view(-1, *[1] * (-1 - self.channel)) * response

    def check_targets_(self, name: str) -> None:
        """
        Verify `target` and note whether neurons are targeted more than once. To be called whenever `target` changes.

        Raises:
            ValueError: If a target is not a neuron of the layer. `name` is the name of the buffer in the message.
        """
        check_targets(name, self.target, self.neurons)
        self.shared_targets = torch.unique(self.target).numel() < self.target.numel()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        name = f"{prefix}target"
        if name in state_dict:
            check_targets(name, state_dict[name], self.neurons)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.target.is_meta:
            self.check_targets_(name)


def check_targets(name: str, target: Tensor, neurons: int) -> None:
    """Raise a `ValueError` if a target is not a neuron of the layer; `name` is how the message calls the tensor."""
    if target.dtype != torch.int64 or target.numel() == 0 or int(target.min()) < 0 or int(target.max()) >= neurons:
        found = f"{target.dtype} in [{target.min()}, {target.max()}]" if target.numel() else "none"
        raise ValueError(
            f"`{name}` must hold neurons in [0, {neurons}) as int64, got {found}. The file is damaged or belongs to "
            "another model."
        )


def growable_in(module: nn.Module) -> Growable | None:
    """The outermost growable layer in a module: itself, or the one that it wraps (as the adapters of PEFT do)."""
    return next((found for found in module.modules() if isinstance(found, Growable)), None)
