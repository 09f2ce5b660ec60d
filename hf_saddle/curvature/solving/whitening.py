"""
Eigenproblems relative to the second moments of a layer's inputs, in coordinates that make them ordinary ones.

`S v = λ M v` with `M = E[x̂ x̂ᵀ] = L Lᵀ` is an ordinary eigenproblem in `u = Lᵀ v`: with whitened inputs `ŷ = L⁻¹ x̂`
the matrices are `Σ_t c_ti ŷ_t ŷ_tᵀ`, and an eigenvector `u` is the direction `v = L⁻ᵀ u`. Its eigenvalue is the
extreme of `vᵀ S v / vᵀ M v`: the curvature per change of the pre-activation, not per change of the weights. Where
inputs have a mean or a few large components, plain eigenvectors lie along these for every neuron of a layer; relative
to `M` they lie where gradient and input vary together, and a linear change of the inputs that the weights undo leaves
them as they are. For centred inputs and `c` the residual of a regression they are the principal Hessian directions
(Li 1992, J. Am. Stat. Assoc. 87, 1025-1039). `L` is lower triangular, shape `(groups, d + 1, d + 1)`: neurons of
different groups of a convolution read different inputs, and both rows of a gated neuron read the same ones.
"""

import torch
from torch import Tensor

from ..capture.moments import in_groups, out_of_groups


def whitened_inputs(factor: Tensor, inputs: Tensor) -> Tensor:
    """`L⁻¹ x̂` of inputs `x̂`, shapes `(tokens, d + 1)`, or `(tokens, groups, d + 1)`."""
    grouped = inputs.unsqueeze(1) if inputs.dim() == 2 else inputs
    solved: Tensor = torch.linalg.solve_triangular(factor.mT, grouped.transpose(0, 1), upper=True, left=False)
    return solved.transpose(0, 1).reshape(inputs.shape)


def directions(factor: Tensor, vectors: Tensor) -> Tensor:
    """The directions `L⁻ᵀ u` of whitened coordinates, shapes `(rows · (d + 1), n)`."""
    return _solved(factor.mT, vectors, upper=True)


def products(factor: Tensor, vectors: Tensor) -> Tensor:
    """What products `S v` of directions are in whitened coordinates, `L⁻¹ S v`, shapes `(rows · (d + 1), n)`."""
    return _solved(factor, vectors, upper=False)


def unit_directions(factor: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions `(rows · (d + 1), n)` of whitened vectors, and what their lengths were before, `(n,)`."""
    found = directions(factor, vectors)
    length = found.norm(dim=0)
    return found / length, length


def _solved(factor: Tensor, vectors: Tensor, upper: bool) -> Tensor:
    groups, size, _ = factor.shape
    solved = torch.linalg.solve_triangular(factor, in_groups(vectors, groups, size), upper=upper)
    return out_of_groups(solved, vectors.shape[1])
