"""Extreme eigenpairs of many symmetric matrices at once, from products with one vector per matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


# Between these step numbers the residuals are compared with the tolerance: the small eigenproblems are not free.
_CHECK_EVERY = 4


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenpairs, one per matrix: the unit `vector` has the Rayleigh quotient `value`."""

    value: Tensor  # (n,)
    vector: Tensor  # (d, n)
    product: Tensor  # (d, n), the matrix times the vector
    residual: Tensor  # (n,), ‖S v - λ v‖: some eigenvalue lies within it (Parlett 1980, Theorem 4.5.1)

    def of(self, matrices: Tensor) -> "Ritz":
        """Those of some of the matrices, int64."""
        vector, product = self.vector.index_select(1, matrices), self.product.index_select(1, matrices)
        return Ritz(self.value[matrices], vector, product, self.residual[matrices])


class Krylov:
    """
    The result of batched Lanczos recurrences: the tridiagonal projections and their bases.

    Attributes:
        values (`Tensor`): Ritz values in ascending order, shape `(n, steps)`. Those of exhausted recurrences (the
            start vector spans an invariant subspace) repeat values that are there already.
    """

    def __init__(
        self,
        basis: list[Tensor],
        diagonal: list[Tensor],
        off_diagonal: list[Tensor],
        alive: list[Tensor],
        lost: list[Tensor | None],
    ):
        self._basis = basis
        self._lost = lost
        self._last = off_diagonal[-1]
        matrix = torch.diag_embed(torch.stack(diagonal, dim=-1))
        if len(diagonal) > 1:
            beside = torch.stack(off_diagonal[:-1], dim=-1)
            matrix = matrix + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
        values: Tensor
        values, vectors = torch.linalg.eigh(matrix)
        # A recurrence that ended early is continued by decoupled steps; their eigenvectors are no Ritz vectors.
        dead = (~torch.stack(alive, dim=-1)).to(values.dtype)
        self._genuine = torch.einsum("njk,nj->nk", vectors * vectors, dead) < 0.5
        self.values, self._vectors = values, vectors

    def residuals(self, largest: Tensor) -> Tensor:
        """Residual norms of the chosen ends, shape `(n,)`; `largest` as in [`~Krylov.ritz`]."""
        _, weights = self._select(largest)
        return (self._last * weights[:, -1]).abs()

    def ritz(self, largest: Tensor) -> Ritz:
        """
        One end of the spectrum of every matrix.

        Args:
            largest (`Tensor`): Per matrix whether the largest eigenvalue is wanted (else the smallest), bool, `(n,)`.
        """
        value, weights = self._select(largest)
        vector = self._basis[0] * weights[:, 0]
        for column, basis in enumerate(self._basis[1:-1], start=1):
            vector.addcmul_(basis, weights[:, column])
        product = (value * vector).addcmul_(self._basis[-1], self._last * weights[:, -1])
        for column, lost in enumerate(self._lost):
            if lost is not None:
                product.addcmul_(lost, weights[:, column])
        norm = vector.norm(dim=0)
        return Ritz(value, vector / norm, product.div_(norm), (self._last * weights[:, -1]).abs())

    def _select(self, largest: Tensor) -> tuple[Tensor, Tensor]:
        infinity = torch.where(largest, -torch.inf, torch.inf).to(self.values.dtype)[:, None]
        candidates = torch.where(self._genuine, self.values, infinity)
        index = torch.where(largest, candidates.argmax(dim=1), candidates.argmin(dim=1))
        rows = torch.arange(len(index), device=index.device)
        return self.values[rows, index], self._vectors[rows, :, index]


def lanczos(
    operator: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    tolerance: float = 0.0,
    largest: Tensor | None = None,
    product: Tensor | None = None,
) -> Krylov:
    """
    Run one Lanczos recurrence per matrix, all sharing the products.

    New vectors are orthogonalised against all earlier ones: for the few steps that are made this costs little beside
    the products, and restarts from good vectors stay accurate in float32.

    Args:
        operator (`Callable`): Maps `(d, n)` to `(d, n)`: column `i` times matrix `i`.
        start (`Tensor`): Start vectors, not zero, shape `(d, n)`.
        steps (`int`): Number of steps, at most `d` are made. Each takes one product.
        tolerance (`float`, *optional*, defaults to 0.0): Stop when the residual of every matrix is below `tolerance`
            times the eigenvalue's magnitude.
        largest (`Tensor`, *optional*): The ends the tolerance refers to, bool, shape `(n,)`. Both ends by default.
        product (`Tensor`, *optional*): What the operator yields for `start`, where that is known: saves one product.
    """
    tiny = torch.finfo(start.dtype).tiny
    # Below this share of the matrix norm, what is left of a new vector may be rounding, which small steps before it
    # have magnified: following it would let the noise choose a direction. To an eigenvalue it could add its square.
    rounding = math.sqrt(torch.finfo(start.dtype).eps)
    reach = torch.zeros_like(start[0])
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    alive = [torch.ones(start.shape[1], dtype=torch.bool, device=start.device)]
    lost: list[Tensor | None] = []  # what was not followed, which still is a part of products
    steps = min(steps, start.shape[0])
    # One tensor for all basis vectors and one for what comes between: asking for memory costs as much as using it.
    space, scratch = start.new_empty(steps + 1, *start.shape), torch.empty_like(start)
    norm = _norms(start, scratch)
    vector = torch.div(start, norm, out=space[0])
    basis = [vector]
    for step in range(1, steps + 1):
        mapped = operator(vector) if step > 1 or product is None else product / norm
        reach = torch.maximum(reach, _norms(mapped, scratch))
        here = torch.mul(mapped, vector, out=scratch).sum(dim=0)
        mapped.addcmul_(vector, here, value=-1)
        if step > 1:
            mapped.addcmul_(basis[-2], off_diagonal[-1], value=-1)
        for known in basis:
            mapped.addcmul_(known, torch.mul(known, mapped, out=scratch).sum(dim=0), value=-1)
        beside = _norms(mapped, scratch)
        going_on = alive[-1] & (beside > rounding * reach)
        ended = alive[-1] & ~going_on
        lost.append(mapped * ended if bool(ended.any()) else None)
        beside = torch.where(going_on, beside, 0)
        diagonal.append(here)
        off_diagonal.append(beside)
        vector = torch.mul(mapped, going_on / beside.clamp_min(tiny), out=space[step])
        basis.append(vector)
        if tolerance > 0 and step % _CHECK_EVERY == 0 and step < steps:
            krylov = Krylov(basis, diagonal, off_diagonal, alive, lost)
            if _converged(krylov, tolerance, largest):
                return krylov
        if step < steps:
            alive.append(going_on)
    return Krylov(basis, diagonal, off_diagonal, alive, lost)


def _norms(vectors: Tensor, scratch: Tensor) -> Tensor:
    """The norms of columns: a good deal faster than `Tensor.norm` along the first dimension."""
    return torch.mul(vectors, vectors, out=scratch).sum(dim=0).sqrt_()


def _converged(krylov: Krylov, tolerance: float, largest: Tensor | None) -> bool:
    count = len(krylov.values)
    always = torch.ones(count, dtype=torch.bool, device=krylov.values.device)
    for end in [~always, always] if largest is None else [largest]:
        value, _ = krylov._select(end)
        if not bool((krylov.residuals(end) <= tolerance * value.abs()).all()):
            return False
    return True


def combine(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], largest: Tensor) -> Ritz:
    """Rayleigh-Ritz in the span of two unit vectors per matrix, each given with its product with the matrix."""
    (u, su), (v, sv) = first, second
    overlap = (u * v).sum(dim=0)
    rest = (1 - overlap.square()).sqrt()
    # Folds that agree to rounding leave no second direction.
    usable = rest > 1e-3
    rest = torch.where(usable, rest, 1)
    w = torch.where(usable, (v - overlap * u) / rest, 0)
    sw = torch.where(usable, (sv - overlap * su) / rest, 0)
    uu, uw, ww = (u * su).sum(dim=0), (u * sw).sum(dim=0), (w * sw).sum(dim=0)
    # The 2 x 2 problem in closed form: the upper eigenvector has the angle θ with tan 2θ = 2 uw / (uu - ww).
    angle = 0.5 * torch.atan2(2 * uw, uu - ww)
    cosine = torch.where(largest, angle.cos(), -angle.sin())
    sine = torch.where(largest, angle.sin(), angle.cos())
    cosine, sine = torch.where(usable, cosine, 1), torch.where(usable, sine, 0)
    vector, product = cosine * u + sine * w, cosine * su + sine * sw
    norm = vector.norm(dim=0)
    vector, product = vector / norm, product / norm
    value = (vector * product).sum(dim=0)
    return Ritz(value=value, vector=vector, product=product, residual=(product - value * vector).norm(dim=0))
