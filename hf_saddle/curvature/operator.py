"""Products with the curvature matrices of all neurons of a layer at once, without forming any of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranks import Ranks


# Tokens of one slice of a product: the intermediate `tokens x n` stays in the cache and its memory is bounded.
_SLICE = 4096


@dataclass(frozen=True)
class CurvatureOperator:
    """
    The matrices `S_i = scale · Σ_t c_ti x̂_t x̂_tᵀ`, one for every neuron `i` of a layer (METHOD: "one kernel").

    With `c = ∂L/∂h φ''(z)` this is the splitting matrix (arXiv 1910.02366, Eq. 6), with `c = ∂L/∂z` the depth matrix.

    Args:
        segments (`Sequence[tuple[Tensor, Tensor]]`): Pairs of inputs `x̂`, shape `(tokens, d + 1)`, and coefficients
            `c`, shape `(tokens, n)`.
        scale (`float`): Factor of the sums.
        ranks (`Ranks`): Processes over which the sums run.
    """

    segments: Sequence[tuple[Tensor, Tensor]]
    scale: float
    ranks: Ranks

    def __call__(self, vectors: Tensor) -> Tensor:
        """The products `S_i v_i`; `vectors` and result have shape `(d + 1, n)`, one column per neuron."""
        result = torch.zeros_like(vectors)
        for inputs, coefficients in self.segments:
            for x, c in zip(torch.split(inputs, _SLICE), torch.split(coefficients, _SLICE), strict=True):
                result.addmm_(x.t(), (x @ vectors).mul_(c))
        return self.ranks.sum(result.mul_(self.scale))

    def product_and_forms(self, vectors: Tensor, owner: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """
        The products `S_i v_i` and, from the same matmuls, each sample's share in `v_iᵀ S_i v_i` (without `scale`).

        Args:
            vectors (`Tensor`): One column per neuron, shape `(d + 1, n)`.
            owner (`Tensor`): Sample of every token, int64, shape `(tokens,)`, the segments one after another.
            samples (`int`): Number of samples on this rank.

        Returns:
            `tuple[Tensor, Tensor]`: Shapes `(d + 1, n)` (summed over ranks) and `(samples, n)` (of this rank).
        """
        result = torch.zeros_like(vectors)
        forms = vectors.new_zeros(samples, vectors.shape[1])
        owners = torch.split(owner, [len(inputs) for inputs, _ in self.segments])
        for (inputs, coefficients), of_segment in zip(self.segments, owners, strict=True):
            parts = [torch.split(part, _SLICE) for part in (inputs, coefficients, of_segment)]
            for x, c, of_sample in zip(*parts, strict=True):
                response = x @ vectors
                weighted = response * c
                result.addmm_(x.t(), weighted)
                forms.index_add_(0, of_sample, weighted.mul_(response))
        return self.ranks.sum(result.mul_(self.scale)), forms

    def dense(self) -> Tensor:
        """All matrices, shape `(n, d + 1, d + 1)`: an oracle for tests and small layers, `n d²` numbers."""
        parts = [torch.einsum("tn,td,te->nde", c, x, x) for x, c in self.segments]
        return self.ranks.sum(torch.stack(parts).sum(dim=0) * self.scale)
