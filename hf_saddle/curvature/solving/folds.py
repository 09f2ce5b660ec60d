"""One half of the samples: products with the matrices that its tokens make, and where searches in it start."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .operator import CurvatureOperator
from .whitening import directions, products


# How much longer the part of a start vector that the gradient gives is than the part that is drawn.
_LEAN = 3.0


@dataclass(frozen=True)
class Fold:
    """The matrices of a layer's neurons by the samples of one fold, in the coordinates that vectors are in."""

    operator: CurvatureOperator
    owner: Tensor  # (tokens,) sample of every token
    whitening: Tensor | None  # of the vectors, where the inputs of the operator are as they were captured

    def of(self, neurons: Tensor) -> "Fold":
        """That of some of the neurons, int64."""
        return replace(self, operator=self.operator.of(neurons))

    def product(self, vectors: Tensor) -> Tensor:
        """The matrices times vectors, one of each, of the shape of `vectors`."""
        if self.whitening is None:
            return self.operator(vectors)
        return products(self.whitening, self.operator(directions(self.whitening, vectors)))

    def product_and_forms(self, vectors: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """As [`~CurvatureOperator.product_and_forms`]."""
        if self.whitening is None:
            return self.operator.product_and_forms(vectors, self.owner, samples)
        found, forms = self.operator.product_and_forms(directions(self.whitening, vectors), self.owner, samples)
        return products(self.whitening, found), forms

    def gradients(self) -> Tensor:
        """As [`~CurvatureOperator.gradients`]."""
        found = self.operator.gradients()
        return found if self.whitening is None else products(self.whitening, found)


def starts(folds: tuple[Fold, Fold], drawn: Tensor) -> tuple[Tensor, Tensor]:
    """
    Start vectors of two folds, of the shape of those drawn: these, leaning towards each fold's own gradient. Extreme
    eigenvectors have a larger share in that than in what is drawn, as both come of the tokens with large coefficients.
    """
    first, second = (_leaning(fold.gradients(), drawn) for fold in folds)
    return first, second


def _leaning(gradient: Tensor, drawn: Tensor) -> Tensor:
    norm = gradient.norm(dim=0)
    share = torch.where(norm > 0, _LEAN * drawn.norm(dim=0) / norm, 0)
    return torch.addcmul(drawn, gradient, share)
