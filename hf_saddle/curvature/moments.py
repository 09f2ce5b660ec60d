"""Second moments of a layer's inputs and pre-activations: how large a step is, and what whitening is relative to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .ranks import Ranks


# Largest change of the pre-activation by a step, as a share of its root mean square.
_LARGEST_CHANGE = 0.5
# What whitening adds to the diagonal of the inputs' moments, as a share of its mean: directions in which the inputs
# hardly vary are not stretched without limit.
_RIDGE = 1e-3
# Tokens per sample that are used where a root mean square is enough.
_TOKENS_FOR_SCALE = 16


def tokens_for_scale(value: Tensor, samples: int, first: int) -> Tensor:
    """
    Every so many tokens of each sample, from another one on in each, so that all positions have their share, a class
    token too; `(samples · t, f)` to `(samples · t', f)`. Samples are counted from `first`.
    """
    per_sample = value.reshape(samples, -1, value.shape[-1])
    count = per_sample.shape[1]
    stride = max(1, count // _TOKENS_FOR_SCALE)
    if stride == 1:
        return value.reshape(-1, value.shape[-1])
    sample = torch.arange(samples, device=value.device)[:, None]
    positions = (first + sample + stride * torch.arange(count // stride, device=value.device)) % count
    return per_sample[sample, positions].reshape(-1, value.shape[-1])


def pre_activation_square(value: Tensor, samples: int, first: int) -> Tensor:
    """Sum of squares of pre-activations `(tokens, n)` over the tokens used for scales, shape `(n,)`."""
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    return tokens_for_scale(value, samples, first).to(dtype).square().sum(dim=0)


@dataclass
class Moments:
    """Second moments of a layer's inputs and pre-activations over evenly spaced tokens, for step sizes."""

    inputs: Tensor  # (d + 1, d + 1), sum of x̂ x̂ᵀ
    pre_activation: Tensor  # (n,), sum of z²

    @classmethod
    def of(cls, inputs: Tensor, samples: int, first: int, pre_activation: Tensor) -> "Moments":
        """
        Moments of one use of a layer.

        Args:
            inputs (`Tensor`): Of all tokens, shape `(tokens, d)`.
            samples (`int`): How many samples they belong to.
            first (`int`): Number of samples before these.
            pre_activation (`Tensor`): Its part of the moments, see [`pre_activation_square`].
        """
        chosen = tokens_for_scale(inputs, samples, first).to(pre_activation.dtype)
        extended = torch.nn.functional.pad(chosen, (0, 1), value=1.0)
        return cls(extended.t() @ extended, pre_activation)

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
        factor: Tensor
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
