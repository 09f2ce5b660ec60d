"""Second moments of a layer's inputs and pre-activations: how large a step is, and what whitening is relative to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ranks import Ranks
from .inputs import Affine, extended, group_count, input_size, inputs_at, neuron_count, neurons_at
from .rowspace import RowSpace


# Largest change of the pre-activation by a step, as a share of its root mean square.
LARGEST_CHANGE = 0.5
# What whitening adds to the diagonal of the inputs' moments, as a share of its mean: directions in which the inputs
# hardly vary are not stretched without limit.
_RIDGE = 1e-3
# Tokens of one slice of a sum: what is made of them stays in the cache.
_SLICE = 1024


def pre_activation_square(value: Tensor, module: Affine, rows: Tensor) -> Tensor:
    """Sum of squares of a layer's output over the positions used for scales, shape `(1, n)`."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    result = torch.zeros(1, neuron_count(module), dtype=dtype, device=value.device)
    for part in torch.split(rows, _SLICE):
        result += neurons_at(value, module, part).to(dtype).square().sum(dim=0, keepdim=True)
    return result


def in_groups(vectors: Tensor, groups: int, size: int) -> Tensor:
    """
    Directions `(rows · size, n)` by the inputs that they meet, shape `(groups, size, rows · n / groups)`; the rows of
    gated neurons meet the same ones.
    """
    return vectors.reshape(-1, size, groups, vectors.shape[1] // groups).permute(2, 1, 0, 3).flatten(2)


def out_of_groups(grouped: Tensor, neurons: int) -> Tensor:
    """The inverse of [`in_groups`]; also of quantities without `size`, which get one row per row of a neuron."""
    groups, size, _ = grouped.shape
    parts = grouped.view(groups, size, -1, neurons // groups)
    return parts.permute(2, 1, 0, 3).reshape(-1, neurons)


@dataclass
class Moments:
    """
    Second moments of a layer's inputs and pre-activations over evenly spaced tokens, for step sizes.

    A patch may have more entries than there are such tokens. The inputs themselves are kept then, `X` with
    `Σ x̂ x̂ᵀ = Xᵀ X`, as products with these cost less.
    """

    inputs: Tensor  # (groups, d + 1, d + 1), sum of x̂ x̂ᵀ; of fewer tokens than d + 1 (groups, tokens, d + 1), the x̂
    pre_activation: Tensor  # (rows, n), sum of z²
    summed: bool = True  # which of both `inputs` are
    whole: "Moments | None" = None  # where these are moments of coordinates: those of the inputs

    @classmethod
    def of(cls, value: Tensor, module: Affine, rows: Tensor, pre_activation: Tensor) -> "Moments":
        """
        Moments of one use of a layer: of its input at the positions used for scales, see [`rows_for_scale`], and what
        [`pre_activation_square`] gives.
        """

        def grouped(part: Tensor) -> Tensor:
            inputs = extended(inputs_at(value, module, part).to(pre_activation.dtype))
            return inputs.unsqueeze(0) if inputs.dim() == 2 else inputs.transpose(0, 1)

        if len(rows) <= input_size(module):
            return cls(grouped(rows), pre_activation, summed=False)
        total = pre_activation.new_zeros(group_count(module), input_size(module) + 1, input_size(module) + 1)
        for inputs in map(grouped, torch.split(rows, _SLICE)):
            total.baddbmm_(inputs.mT, inputs)
        return cls(total, pre_activation)

    @property
    def count(self) -> Tensor:
        """Number of tokens, shape `()`."""
        if self.whole is not None:
            return self.whole.count
        last = self.inputs[0, :, -1]
        return last[-1] if self.summed else last.sum()

    def add(self, other: "Moments") -> "Moments":
        """The moments of both token sets together."""
        square = self.pre_activation + other.pre_activation
        if self.summed or other.summed:
            return Moments(self.sums() + other.sums(), square)
        return Moments(torch.cat([self.inputs, other.inputs], dim=1), square, summed=False)._short()

    def reduced(self, ranks: Ranks) -> "Moments":
        """The moments over all ranks."""
        if ranks.size == 1:
            return self
        square = ranks.sum(self.pre_activation.clone())
        tokens, size = self.inputs.shape[1:]
        few = int(ranks.sum(torch.tensor(size if self.summed else tokens, device=square.device))) < size
        if few:
            rows = ranks.concatenate(self.inputs.transpose(0, 1))
            return Moments(rows.transpose(0, 1), square, summed=False)
        return Moments(ranks.sum(self.sums().clone()), square)

    def within(self, space: RowSpace) -> "Moments":
        """The moments of coordinates in a space; inputs have one group."""
        (inputs,) = self.inputs
        product = space.coordinates(inputs.t()).t()
        if self.summed:
            product = space.coordinates(product)
        return Moments(product[None], self.pre_activation, self.summed, whole=self)

    def sums(self) -> Tensor:
        """The sums of `x̂ x̂ᵀ`, shape `(groups, d + 1, d + 1)`."""
        return self.inputs if self.summed else self.inputs.mT @ self.inputs

    def _short(self) -> "Moments":
        few = self.inputs.shape[1] < self.inputs.shape[2]
        return self if few else Moments(self.sums(), self.pre_activation)

    def _squares(self) -> Tensor:
        """The diagonal of the sums, shape `(groups, d + 1)`."""
        return self.inputs.diagonal(dim1=1, dim2=2) if self.summed else self.inputs.square().sum(dim=1)

    def constant_inputs(self) -> bool:
        """Whether all tokens have the same input, up to rounding."""
        square = self._squares()[:, :-1] / self.count
        total = self.inputs[:, -1] if self.summed else self.inputs.sum(dim=1)
        variance = square - (total[:, :-1] / self.count).square()
        return bool((variance <= 100 * torch.finfo(square.dtype).eps * square).all())

    def scaled(self, vectors: Tensor) -> Tensor:
        """The vectors `(rows · (d + 1), n)` times the sums of `x̂ x̂ᵀ`."""
        groups, _, size = self.inputs.shape
        product = self.inputs @ in_groups(vectors, groups, size)
        return out_of_groups(product if self.summed else self.inputs.mT @ product, vectors.shape[1])

    def step(self, vectors: Tensor, row_norm: Tensor, step_size: float) -> Tensor:
        """
        The step `ε = step_size · ‖[w; b]‖` along unit vectors `(rows · (d + 1), n)`, shortened where it would change a
        pre-activation by more than half of its root mean square.

        Relative to the row, a step makes the gain a multiple of the eigenvalue, which the eigenvector is optimal for;
        a step relative to `rms(z) / rms(v · x̂)` instead favours neurons whose eigenvector avoids the inputs. The
        second order model ends where `z` changes by its own size, and inputs with a large mean reach that within a
        small step.
        """
        return torch.minimum(step_size * row_norm, self.whitened_step(vectors, LARGEST_CHANGE))

    def whitened_step(self, vectors: Tensor, step_size: float) -> Tensor:
        """
        The step that changes the pre-activation by `step_size` times its root mean square, at most by half of it. Of
        the two pre-activations of a gated neuron the one that allows less counts.

        Relative to the pre-activation, a step makes the gain a multiple of `vᵀ S v / vᵀ M v`, which whitened
        directions are optimal for.
        """
        size = (self.pre_activation / self.count).sqrt()
        steps = min(step_size, LARGEST_CHANGE) * size / self._responses(vectors)
        return steps.amin(dim=0)

    def factor(self, layer: str, bias: bool = True) -> Tensor:
        """
        As `factor_if_any`, of the inputs of a layer.

        Raises:
            ValueError: If there is none.
        """
        factor = self.factor_if_any(bias)
        if factor is None:
            raise ValueError(
                f"The inputs of {layer} cannot be whitened: their second moments are out of the range of "
                f"{self.inputs.dtype}. Check the model's activations, probe in float64, or use `whiten=False` "
                "(`directions='eigenvectors'` of a GrowthConfig)."
            )
        return factor

    def factor_if_any(self, bias: bool = True) -> Tensor | None:
        """
        The Cholesky factors `L` of `M = E[x̂ x̂ᵀ]` with a small ridge, shape `(groups, d + 1, d + 1)`; `None` where `M`
        is not finite, or not positive definite by rounding. Without a bias its entry, which directions do not have
        then, stands apart from the others.
        """
        moments = self.sums() / self.count
        if not bias:
            moments[:, -1, :-1] = moments[:, :-1, -1] = 0
        ridge = _RIDGE * (self if self.whole is None else self.whole)._squares().mean(dim=1) / self.count
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(
            moments + ridge[:, None, None] * torch.eye(moments.shape[-1]).to(moments)
        )
        usable = not bool(failed.any()) and bool(torch.isfinite(factor).all())
        return factor if usable else None

    def response(self, vectors: Tensor) -> Tensor:
        """
        Root mean square of `v · x̂` for vectors `(rows · (d + 1), n)`, of both rows of a gated neuron together, bounded
        away from zero, shape `(n,)`.
        """
        response: Tensor = torch.linalg.vector_norm(self._responses(vectors), dim=0)
        return response

    def _responses(self, vectors: Tensor) -> Tensor:
        """Root mean squares of `v · x̂` by rows of the neurons, bounded away from zero, shape `(rows, n)`."""
        groups, _, size = self.inputs.shape
        parts = in_groups(vectors, groups, size)
        product = self.inputs @ parts
        square = (parts * product if self.summed else product.square()).sum(dim=1, keepdim=True)
        floor = torch.finfo(square.dtype).eps * self._squares().sum(dim=1)
        return (out_of_groups(square.clamp_min(floor[:, None, None]), vectors.shape[1]) / self.count).sqrt()
