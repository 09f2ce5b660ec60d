"""Second moments of a layer's inputs and pre-activations: how large a step is, and what whitening is relative to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .distributed import Ranks
from .probe import Call, tokens_for_scale


# Largest change of the pre-activation by a step, as a share of its root mean square.
_LARGEST_CHANGE = 0.5
# What whitening adds to the diagonal of the inputs' moments, as a share of its mean: directions in which the inputs
# hardly vary are not stretched without limit.
_RIDGE = 1e-3


@dataclass
class Moments:
    """Second moments of a layer's inputs and pre-activations over evenly spaced tokens, for step sizes."""

    inputs: Tensor  # (d + 1, d + 1), sum of x̂ x̂ᵀ
    pre_activation: Tensor  # (n,), sum of z²

    @classmethod
    def of(cls, inputs: Tensor, call: Call) -> "Moments":
        """Moments of one use of the layer with the inputs `(tokens, d)`."""
        square = call.pre_activation_square
        chosen = tokens_for_scale(inputs, call.samples, call.first).to(square.dtype)
        extended = torch.nn.functional.pad(chosen, (0, 1), value=1.0)
        return cls(extended.t() @ extended, square)

    def add(self, other: "Moments") -> "Moments":
        """The moments of both token sets together."""
        return Moments(self.inputs + other.inputs, self.pre_activation + other.pre_activation)

    def reduced(self, ranks: Ranks) -> "Moments":
        """The moments over all ranks."""
        return Moments(ranks.sum(self.inputs.clone()), ranks.sum(self.pre_activation.clone()))

    def constant_inputs(self) -> bool:
        """Whether all tokens have the same input, up to rounding."""
        count = self.inputs[-1, -1]
        square = self.inputs.diagonal()[:-1] / count
        variance = square - (self.inputs[-1, :-1] / count).square()
        return bool((variance <= 100 * torch.finfo(square.dtype).eps * square).all())

    def step(self, vectors: Tensor, row_norm: Tensor, step_size: float) -> Tensor:
        """
        The step `ε = step_size · ‖[w; b]‖` along unit vectors `(d + 1, n)`, shortened where it would change the
        pre-activation by more than half of its root mean square.

        Relative to the row, a step makes the gain a multiple of the eigenvalue, which the eigenvector is optimal for;
        a step relative to `rms(z) / rms(v · x̂)` instead favours neurons whose eigenvector avoids the inputs. The
        second order model ends where `z` changes by its own size, and inputs with a large mean reach that within a
        small step.
        """
        return torch.minimum(step_size * row_norm, _LARGEST_CHANGE * self.size() / self.response(vectors))

    def whitened_step(self, vectors: Tensor, step_size: float) -> Tensor:
        """
        The step that changes the pre-activation by `step_size` times its root mean square, at most by half of it.

        Relative to the pre-activation, a step makes the gain a multiple of `vᵀ S v / vᵀ M v`, which whitened
        directions are optimal for.
        """
        return min(step_size, _LARGEST_CHANGE) * self.size() / self.response(vectors)

    def factor(self, layer: str) -> Tensor:
        """
        The Cholesky factor `L` of `M = E[x̂ x̂ᵀ]` with a small ridge, shape `(d + 1, d + 1)`.

        Raises:
            ValueError: If `M` is not finite, or not positive definite by rounding.
        """
        moments = self.inputs / self.inputs[-1, -1]
        ridge = _RIDGE * moments.diagonal().mean()
        factor, failed = torch.linalg.cholesky_ex(moments + ridge * torch.eye(len(moments)).to(moments))
        if bool(failed) or not bool(torch.isfinite(factor).all()):
            raise ValueError(
                f"The inputs of {layer} cannot be whitened: their second moments are out of the range of "
                f"{moments.dtype}. Check the model's activations, probe in float64, or use `whiten=False` "
                "(`directions='eigenvectors'` of a GrowthConfig)."
            )
        return factor

    def size(self) -> Tensor:
        """Root mean square of the pre-activations, shape `(n,)`."""
        return (self.pre_activation / self.inputs[-1, -1]).sqrt()

    def response(self, vectors: Tensor) -> Tensor:
        """Root mean square of `v · x̂` for vectors `(d + 1, n)`, bounded away from zero, shape `(n,)`."""
        square = (vectors * (self.inputs @ vectors)).sum(dim=0)
        floor = torch.finfo(square.dtype).eps * self.inputs.diagonal().sum()
        return (square.clamp_min(floor) / self.inputs[-1, -1]).sqrt()
