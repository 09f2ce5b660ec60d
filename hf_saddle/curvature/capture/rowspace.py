"""
Coordinates in the space that a few tokens span: what a layer with more inputs than tokens is analysed in.

All that curvature matrices of the tokens `X`, shape `(tokens, d + 1)`, answer lies in the span of the rows of `X`.
With `X Xᵀ = R Rᵀ` the columns of `B = Xᵀ R⁻ᵀ` are an orthonormal basis of it, in which the inputs are the rows of
`X B` and a vector `y` stands for the direction `B y`. Whitened directions are looked for in the same space: what the
tokens do not span they say nothing of.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


# What is added to the diagonal of `X Xᵀ`, in units of its trace's rounding: tokens that depend on others linearly, as
# the blank patches of an image do, have a factor then too. Basis vectors of such directions come out shorter than 1.
_JITTER = 4.0
# About how many products with all tokens directions take.
_PRODUCTS = 12


@dataclass(frozen=True)
class RowSpace:
    """The span of the rows of some inputs."""

    inputs: Tensor  # X, (tokens, d + 1)
    factor: Tensor  # R, (tokens, tokens), lower triangular
    own: Tensor  # X B, the coordinates of the inputs themselves, (tokens, tokens)

    @classmethod
    def of(cls, inputs: Tensor) -> "RowSpace | None":
        """The space that inputs `(tokens, d + 1)` span; `None` where rounding hides it."""
        gram = inputs @ inputs.t()
        jitter = _JITTER * torch.finfo(gram.dtype).eps * gram.trace()
        factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(jitter.expand(len(gram))))
        if bool(failed):
            return None
        return cls(inputs, factor, torch.linalg.solve_triangular(factor, gram, upper=False).t())

    def coordinates(self, vectors: Tensor) -> Tensor:
        """The coordinates `Bᵀ v` of vectors `(d + 1, n)`, of those off the space of what lies in it."""
        solved: Tensor = torch.linalg.solve_triangular(self.factor, self.inputs @ vectors, upper=False)
        return solved

    def directions(self, coordinates: Tensor) -> Tensor:
        """The vectors `B y` of coordinates `(tokens, n)`."""
        weights: Tensor = torch.linalg.solve_triangular(self.factor.t(), coordinates, upper=True)
        return self.inputs.t() @ weights


def pays(tokens: int, inputs: int, neurons: int, rows: int, whiten: bool) -> bool:
    """
    Whether finding directions in the space that tokens span is less work than among all of them; `rows` are those of
    the second moments, sums of as many or the inputs themselves.
    """
    direct: float = _PRODUCTS * tokens * inputs * neurons
    within: float = tokens * inputs * (tokens + neurons + rows) + tokens**2 * (_PRODUCTS * neurons + rows)
    if whiten:
        summed = 0 if rows > inputs else rows
        direct += inputs**2 * (inputs / 3 + tokens + summed)
        within += tokens**3
    return tokens <= inputs and within < direct
