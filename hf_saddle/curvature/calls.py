"""One use of an affine layer in a forward pass, and whether its neurons can be split."""

from dataclasses import dataclass, field

from torch import Tensor

from .activations import Activation
from .inputs import Affine, group_count


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
    chain_rule: Tensor | None = None  # ∂L/∂z of some tokens, by ∂L/∂h
    # (rows, n) of all rows of a neuron, as the activation reads them: behind a batch normalisation in units of z
    width_square: Tensor | None = None
    slope: Tensor | None = None  # (n,) of a batch normalisation before the activation
    norms: int = 0  # affine parameters per neuron in a batch normalisation
    partner: "Call | None" = None  # of a gate: the use of the layer that it multiplies

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
