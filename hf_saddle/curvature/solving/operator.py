"""Products with the curvature matrices of all neurons of a layer at once, without forming any of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ranks import Ranks


# Tokens of one slice of a product: the intermediate `tokens x n` stays in the cache and its memory is bounded.
_SLICE = 1024


@dataclass(frozen=True)
class CurvatureOperator:
    """
    The matrices `S_i = scale · Σ_t c_ti x̂_t x̂_tᵀ`, one for every neuron `i` of a layer (METHOD: "one kernel").

    With `c = ∂L/∂h φ''(z)` this is the splitting matrix (arXiv 1910.02366, Eq. 6), with `c = ∂L/∂z` the depth matrix.

    Two more kinds of neurons fit: those of a convolution with groups have inputs of their own, and gated ones have two
    rows. The matrices of these have the blocks `Σ_t c₁ x̂x̂ᵀ` (gate, gate), `Σ_t c₂ x̂x̂ᵀ` (gate, up) and 0 (up, up).

    Args:
        segments (`Sequence[tuple[Tensor, Tensor]]`): Pairs of inputs `x̂`, shape `(tokens, d + 1)`, or
            `(tokens, n, d + 1)` of groups, and coefficients `c`, shape `(tokens, n)`, or `(tokens, 2, n)` of gated
            neurons.
        scale (`float`): Factor of the sums.
        ranks (`Ranks`): Processes over which the sums run.
    """

    segments: Sequence[tuple[Tensor, Tensor]]
    scale: float
    ranks: Ranks

    def of(self, neurons: Tensor) -> "CurvatureOperator":
        """The operator of some of the neurons, int64."""
        segments = [
            (x if x.dim() == 2 else x.index_select(1, neurons), c.index_select(-1, neurons)) for x, c in self.segments
        ]
        return CurvatureOperator(segments, self.scale, self.ranks)

    def __call__(self, vectors: Tensor) -> Tensor:
        """The products `S_i v_i`, one column per neuron, shape `(d + 1, n)`, of gated neurons `(2 (d + 1), n)`."""
        result = torch.zeros_like(vectors)
        for inputs, coefficients in self.segments:
            for x, c in zip(torch.split(inputs, _SLICE), torch.split(coefficients, _SLICE), strict=True):
                add_products_(result, x, _weighted(c, responses(x, c, vectors)))
        return self.ranks.sum(result.mul_(self.scale))

    def gradients(self) -> Tensor:
        """`scale · Σ_t c_ti x̂_t`, the matrices times the direction of a bias, of the shape of `S_i v_i`."""
        (inputs, coefficients), *_ = self.segments
        rows = inputs.shape[-1] * (1 if coefficients.dim() == 2 else 2)
        result = inputs.new_zeros(rows, coefficients.shape[-1])
        for inputs, coefficients in self.segments:
            add_products_(result, inputs, coefficients)
        return self.ranks.sum(result.mul_(self.scale))

    def product_and_forms(self, vectors: Tensor, owner: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """
        The products `S_i v_i` and, from the same matmuls, each sample's share in `v_iᵀ S_i v_i` (without `scale`).

        Args:
            vectors (`Tensor`): One column per neuron, shape `(d + 1, n)`, of gated neurons `(2 (d + 1), n)`.
            owner (`Tensor`): Sample of every token, int64, shape `(tokens,)`, the segments one after another.
            samples (`int`): Number of samples on this rank.

        Returns:
            `tuple[Tensor, Tensor]`: Of the shape of `vectors` (summed over ranks) and `(samples, n)` (of this rank).
        """
        result = torch.zeros_like(vectors)
        forms = vectors.new_zeros(samples, vectors.shape[1])
        owners = torch.split(owner, [len(inputs) for inputs, _ in self.segments])
        for (inputs, coefficients), of_segment in zip(self.segments, owners, strict=True):
            parts = [torch.split(part, _SLICE) for part in (inputs, coefficients, of_segment)]
            for x, c, of_sample in zip(*parts, strict=True):
                response = responses(x, c, vectors)
                weighted = _weighted(c, response)
                add_products_(result, x, weighted)
                form = weighted.mul_(response)
                forms.index_add_(0, of_sample, form if form.dim() == 2 else form.sum(dim=1))
        return self.ranks.sum(result.mul_(self.scale)), forms

    def dense(self) -> Tensor:
        """All matrices, shape `(n, d + 1, d + 1)`: an oracle for tests and small layers, `n d²` numbers."""
        return self.ranks.sum(torch.stack([_dense(x, c) for x, c in self.segments]).sum(dim=0) * self.scale)


def quadratic_forms(inputs: Tensor, coefficients: Tensor, vectors: Tensor) -> Tensor:
    """Each token's share in `v_iᵀ S_i v_i`, shape `(tokens, n)`; the arguments are those of [`CurvatureOperator`]."""
    response = responses(inputs, coefficients, vectors)
    form = _weighted(coefficients, response).mul_(response)
    return form if form.dim() == 2 else form.sum(dim=1)


def responses(inputs: Tensor, coefficients: Tensor, vectors: Tensor) -> Tensor:
    """What `v · x̂` is for every token and neuron, of the shape of the coefficients."""
    if inputs.dim() == 3:
        return torch.einsum("tnd,dn->tn", inputs, vectors)
    if coefficients.dim() == 3:
        both = vectors.view(2, inputs.shape[1], -1).transpose(0, 1).flatten(1)
        return (inputs @ both).view(len(inputs), 2, -1)
    return inputs @ vectors


def _weighted(coefficients: Tensor, responses: Tensor) -> Tensor:
    """The responses times the coefficients; of gated neurons times the symmetric matrices `[[c₁, c₂], [c₂, 0]]`."""
    if coefficients.dim() == 2:
        return coefficients * responses
    (first, second), (gate, up) = coefficients.unbind(1), responses.unbind(1)
    return torch.stack([(first * gate).addcmul_(second, up), second * gate], dim=1)


def add_products_(result: Tensor, inputs: Tensor, weighted: Tensor) -> None:
    """Add `Σ_t x̂_t r_ti` to `result`; shapes as in [`CurvatureOperator`]."""
    if inputs.dim() == 3:
        result.add_(torch.einsum("tnd,tn->dn", inputs, weighted))
    elif weighted.dim() == 3:
        result.view(2, inputs.shape[1], -1).transpose(0, 1).add_(
            (inputs.t() @ weighted.flatten(1)).view(inputs.shape[1], 2, -1)
        )
    else:
        result.addmm_(inputs.t(), weighted)


def _dense(inputs: Tensor, coefficients: Tensor) -> Tensor:
    if inputs.dim() == 3:
        return torch.einsum("tn,tnd,tne->nde", coefficients, inputs, inputs)
    if coefficients.dim() == 2:
        return torch.einsum("tn,td,te->nde", coefficients, inputs, inputs)
    first, second = (torch.einsum("tn,td,te->nde", c, inputs, inputs) for c in coefficients.unbind(1))
    return torch.cat([torch.cat([first, second], dim=2), torch.cat([second, torch.zeros_like(second)], dim=2)], dim=1)
