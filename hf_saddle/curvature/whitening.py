"""
Eigenproblems relative to the second moments of a layer's inputs, in coordinates that make them ordinary ones.

`S v = λ M v` with `M = E[x̂ x̂ᵀ] = L Lᵀ` is an ordinary eigenproblem in `u = Lᵀ v`: with whitened inputs `ŷ = L⁻¹ x̂`
the matrices are `Σ_t c_ti ŷ_t ŷ_tᵀ`, and an eigenvector `u` is the direction `v = L⁻ᵀ u`. Its eigenvalue is the
extreme of `vᵀ S v / vᵀ M v`: the curvature per change of the pre-activation, not per change of the weights. Where
inputs have a mean or a few large components, plain eigenvectors lie along these for every neuron of a layer; relative
to `M` they lie where gradient and input vary together, and a linear change of the inputs that the weights undo leaves
them as they are. For centred inputs and `c` the residual of a regression they are the principal Hessian directions
(Li 1992, J. Am. Stat. Assoc. 87, 1025-1039). `L` is lower triangular, shape `(d + 1, d + 1)`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .eigenpairs import Eigenpairs


def whitened_inputs(factor: Tensor, inputs: Tensor) -> Tensor:
    """`L⁻¹ x̂` of inputs `x̂`, shapes `(tokens, d + 1)`."""
    solved: Tensor = torch.linalg.solve_triangular(factor.t(), inputs, upper=True, left=False)
    return solved


def whitened(factor: Tensor, directions: Tensor) -> Tensor:
    """Whitened coordinates `Lᵀ v` of directions, shapes `(d + 1, n)`."""
    return factor.t() @ directions


def unit_directions(factor: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions `(d + 1, n)` of whitened vectors, and what their lengths were before, `(n,)`."""
    found = torch.linalg.solve_triangular(factor.t(), vectors, upper=True)
    length = found.norm(dim=0)
    return found / length, length


def unwhitened(factor: Tensor, pairs: Eigenpairs) -> Eigenpairs:
    """Eigenpairs as unit directions with their quadratic forms `vᵀ S v`; residuals in the same unit."""
    vector, length = unit_directions(factor, pairs.vector)
    square = length.square()
    return replace(
        pairs,
        vector=vector,
        value=pairs.value / square,
        residual=pairs.residual / square,
        held_out=pairs.held_out / square.double(),
        standard_error=pairs.standard_error / square.double(),
    )
