"""One use of an affine layer in a forward pass, and whether its neurons can be split."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..activations import Activation
from .inputs import Affine, group_count, neuron_count
from .moments import pre_activation_square


@dataclass
class Call:
    """One use of an affine layer in a forward pass, and what data flow told about its surroundings."""

    linear: str
    module: Affine
    samples: int
    first: int  # samples in earlier batches and on lower ranks
    tokens: int
    mask: Tensor | None  # (tokens,) bool, tokens that are no padding, where there is any
    rows: Tensor  # int64, the tokens used for scales
    pre_activation_square: Tensor  # (1, n), sum over the tokens used for scales
    activation: Activation | None = None
    no_curvature: str | None = None  # why the activation that reads z has none
    # layers that read the activation's output -> number of weights that each of them has per neuron
    consumers: dict[str, int] = field(default_factory=dict)
    other_readers: list[str] = field(default_factory=list)  # further modules that read z
    in_place: bool = False  # the activation overwrites z
    reshaped: bool = False  # what may be an activation reads z with other axes
    chain_rule: Tensor | None = None  # ∂L/∂z of some tokens, by ∂L/∂h
    # (rows, n) of all rows of a neuron, as the activation reads them: behind a batch normalisation in units of z
    width_square: Tensor | None = None
    slope: Tensor | None = None  # (n,) of a batch normalisation before the activation
    norms: int = 0  # affine parameters per neuron in a batch normalisation
    partner: "Call | None" = None  # of a gate: the use of the layer that it multiplies

    def connect(self, reader: str, activation: Activation, z: Tensor, answer: "Output", in_place: bool) -> None:
        """Note that a module applies an activation to what the layer, or a normalisation behind it, answered."""
        if self.activation is not None:
            self.other_readers.append(reader)
        self.activation, self.in_place = activation, in_place
        self.slope, self.norms = answer.slope, answer.norms
        self.width_square = self.pre_activation_square
        if answer.slope is not None:
            square = pre_activation_square(z, self.module, self.rows)
            # A neuron that its normalisation multiplies by zero has no curvature; its step only stays finite.
            slopes = answer.slope.square().to(square).clamp_min(torch.finfo(square.dtype).eps)
            self.width_square = square / slopes

    def few(self) -> Tensor:
        """Some of the tokens, to check on."""
        return self.rows[:: max(1, len(self.rows) // 64)]

    def valid(self) -> int:
        """Number of tokens that are no padding."""
        return self.tokens if self.mask is None else int(self.mask.sum())

    def why_no_width(self) -> str | None:
        """The reason why the neurons cannot be split, or `None` if they can."""
        if self.no_curvature is not None:
            return self.no_curvature
        if self.activation is None and self.reshaped:
            return "its output is reshaped before its activation may read it, so that its neurons are not found"
        if self.activation is None:
            return "no activation module reads its output, so its neurons are linear and their splitting matrices zero"
        if self.in_place:
            return "its activation overwrites its output (set `inplace=False`)"
        if group_count(self.module) > 1:
            return "its neurons are channels of a convolution with groups, which copies would not fit into"
        others = self.other_readers + ([] if self.partner is None else self.partner.other_readers)
        if others:
            return f"its output is also read by {', '.join(others)}"
        if not self.consumers:
            return "no linear layer reads the output of its activation"
        # A branch of the consumer reads the same tensor; its columns are halved with the consumer's.
        root = min(self.consumers, key=len)
        strangers = [name for name in self.consumers if name != root and not name.startswith(f"{root}.")]
        if strangers:
            return f"the output of its activation is read by several layers ({root}, {', '.join(strangers)})"
        return None


@dataclass(frozen=True)
class Output:
    """What a layer answered in a forward pass; of a recomputation without the call that it belongs to."""

    call: Call | None
    module: Affine
    inputs: Tensor
    version: int
    shape: torch.Size
    stride: tuple[int, ...]
    value: Tensor | None = None  # of the rows of a gate
    slope: Tensor | None = None  # of a batch normalisation that it went through
    norms: int = 0

    def row(self) -> Tensor:
        """The output of one of the rows of a gate."""
        assert self.value is not None
        return self.value.detach()

    def is_whole(self, tensor: Tensor) -> bool:
        """Whether a tensor in the memory of this output has its axes, but for those before the last one of tokens."""
        if (tensor.shape, tensor.stride()) == (self.shape, self.stride):
            return True
        of_tokens = not isinstance(self.module, nn.Conv2d)
        return of_tokens and tensor.shape[-1] == neuron_count(self.module) and tensor.is_contiguous()


def why_no_tokens(module: Affine, inputs: Tensor, samples: int) -> str | None:
    """The reason why a use of a layer in a batch cannot be analysed, or `None` if it can."""
    if not torch.is_grad_enabled():
        return (
            "runs without gradients (under `torch.no_grad`, or reentrant activation checkpointing, which "
            '`gradient_checkpointing_kwargs={"use_reentrant": False}` avoids)'
        )
    if inputs.numel() == 0:
        return "gets no tokens"
    shaped = inputs.dim() == 4 if isinstance(module, nn.Conv2d) else inputs.dim() > 1
    if not shaped or inputs.shape[0] % samples:
        return f"its input of shape {tuple(inputs.shape)} is not grouped by the {samples} samples of the batch"
    return None
