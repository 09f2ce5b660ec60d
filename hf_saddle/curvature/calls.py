"""One use of a linear layer in a forward pass, and whether its neurons can be split."""

from dataclasses import dataclass, field

from torch import Tensor

from .activations import Activation


@dataclass
class Call:
    """One use of a linear layer in a forward pass, and what data flow told about its surroundings."""

    linear: str
    samples: int
    first: int  # samples in earlier batches and on lower ranks
    tokens: int
    pre_activation_square: Tensor  # (n,), sum over the tokens used for scales
    activation: Activation | None = None
    no_curvature: str | None = None  # why the activation that reads z has none
    consumers: dict[str, int] = field(
        default_factory=dict
    )  # linears that read the activation's output -> out_features
    other_readers: list[str] = field(default_factory=list)  # further modules that read z
    in_place: bool = False  # the activation overwrites z
    chain_rule: Tensor | None = None  # ∂L/∂h φ'(z) of some tokens

    def why_no_width(self) -> str | None:
        """The reason why the neurons cannot be split, or `None` if they can."""
        if self.no_curvature is not None:
            return self.no_curvature
        if self.activation is None:
            return "no activation module reads its output, so its neurons are linear and their splitting matrices zero"
        if self.in_place:
            return "its activation overwrites its output (set `inplace=False`)"
        if self.other_readers:
            return f"its output is also read by {', '.join(self.other_readers)}"
        if not self.consumers:
            return "no linear layer reads the output of its activation"
        # A branch of the consumer reads the same tensor; its columns are halved with the consumer's.
        root = min(self.consumers, key=len)
        strangers = [name for name in self.consumers if name != root and not name.startswith(f"{root}.")]
        if strangers:
            return f"the output of its activation is read by several layers ({root}, {', '.join(strangers)})"
        return None
