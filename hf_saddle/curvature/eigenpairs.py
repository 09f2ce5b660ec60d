"""Extreme eigenpairs of all curvature matrices of a layer: screen every neuron on few tokens, refine a shortlist."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .drawing import draw_rows
from .lanczos import Krylov, Ritz, combine, lanczos
from .operator import CurvatureOperator
from .ranks import Ranks
from .samples import Samples
from .significance import held_out_estimate
from .tokens import Tokens


@dataclass(frozen=True)
class SolverOptions:
    """
    How much work the eigensolver does.

    Args:
        screen_tokens (`float`, *optional*, defaults to 1/12): Share of the tokens, drawn by importance, on which all
            neurons are screened. 1 turns screening off: every neuron is refined on all tokens.
        screen_floor (`int`, *optional*, defaults to 512): Number of tokens that screening uses at least.
        screen_steps (`int`, *optional*, defaults to 8): Lanczos steps of the screening, per fold.
        shortlist (`float`, *optional*, defaults to 1/4): Share of the neurons, by screened gain, that are refined.
        shortlist_floor (`int`, *optional*, defaults to 32): Number of neurons that are refined at least.
        refine_steps (`int`, *optional*, defaults to 2): Lanczos steps on all tokens of each fold, from the screened
            vectors.
        polish_steps (`int`, *optional*, defaults to 2): Lanczos steps on the tokens of both folds, from the
            combination of the folds' vectors.
        tolerance (`float`, *optional*, defaults to 0.01): Recurrences stop early when all residuals are below this
            share of their eigenvalues.
    """

    screen_tokens: float = 1 / 12
    screen_floor: int = 512
    screen_steps: int = 8
    shortlist: float = 1 / 4
    shortlist_floor: int = 32
    refine_steps: int = 2
    polish_steps: int = 2
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        for name in ("screen_tokens", "shortlist"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in (0, 1], got {getattr(self, name)}.")
        for name in ("screen_floor", "screen_steps", "shortlist_floor", "refine_steps", "polish_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.tolerance >= 0:
            raise ValueError(f"`tolerance` must not be negative, got {self.tolerance}.")


@dataclass(frozen=True)
class Eigenpairs:
    """One extreme eigenpair per neuron; see [`LayerCurvature`] for the meaning of the fields."""

    held_out: Tensor  # (n,)
    standard_error: Tensor  # (n,)
    value: Tensor  # (n,) Rayleigh quotient of `vector` on all the tokens used
    vector: Tensor  # (d + 1, n), of gated neurons (2 (d + 1), n)
    residual: Tensor  # (n,)
    largest: Tensor  # (n,) bool, which end
    refined: Tensor  # (n,) bool, all tokens were used


@dataclass(frozen=True)
class _Fold:
    operator: CurvatureOperator
    owner: Tensor  # (tokens,) sample of every token


@dataclass(frozen=True)
class _CrossFit:
    vectors: tuple[Tensor, Tensor]  # of the folds, (d + 1, n)
    both: Ritz  # from both folds together
    largest: Tensor
    held_out: Tensor
    standard_error: Tensor


def extreme_pairs(
    tokens: Tokens,
    *,
    importance: Tensor,
    start: Tensor,
    score: Callable[[Tensor, Tensor], Tensor],
    samples: Samples,
    ranks: Ranks,
    options: SolverOptions,
    generator: torch.Generator,
    smallest_only: bool,
    flip: bool,
    transform: Callable[[Tensor], Tensor] | None,
) -> Eigenpairs:
    """
    Compute the extreme eigenpair of every neuron of a layer.

    Each fold of samples gets its own eigenvectors, whose quadratic forms on the *other* fold are the held-out
    estimates. The direction that is handed out comes from all tokens: a Rayleigh-Ritz step in the span of both folds'
    vectors, then a few Lanczos steps.

    Args:
        tokens (`Tokens`): What was captured at the layer.
        importance (`Tensor`): Of the tokens, float64, shape `(tokens,)`.
        start (`Tensor`): Start vectors, shape `(d + 1, n)`, of gated neurons `(2 (d + 1), n)`.
        score (`Callable`): Maps eigenvalues `(n,)` and vectors of the shape of `start` to what neurons are
            shortlisted by.
        samples (`Samples`): Folds of the samples.
        ranks (`Ranks`): Processes over which the sums run.
        options (`SolverOptions`): Work to be done.
        generator (`torch.Generator`): Source of what is drawn; the same on every rank.
        smallest_only (`bool`): Whether only the lower end matters (width), or the end of larger magnitude (depth).
        flip (`bool`): Whether every sample's coefficients get a random sign (null model).
        transform (`Callable`, *optional*): Applied to the inputs `x̂`; vectors are then in the coordinates of what it
            returns.
    """

    def fold(index: int, rows: Tensor, neurons: Tensor | None = None, weight: Tensor | None = None) -> _Fold:
        owner = tokens.owner.index_select(0, rows)
        inputs, coefficients = tokens.segment(rows, neurons, transform)
        of_token = [-1] + [1] * (coefficients.dim() - 1)
        if weight is not None:
            coefficients.mul_(weight.to(coefficients.dtype).view(of_token))
        if flip:
            coefficients.mul_(samples.sign[owner].to(coefficients.dtype).view(of_token))
        return _Fold(CurvatureOperator([(inputs, coefficients)], 1 / samples.size(index), ranks), owner)

    neurons, device = tokens.neurons, importance.device
    uniforms = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    total = int(ranks.sum(torch.tensor(len(tokens), device=device)))
    budget = max(math.ceil(options.screen_tokens * total), options.screen_floor)
    chosen = max(math.ceil(options.shortlist * neurons), options.shortlist_floor)
    largest = torch.zeros(neurons, dtype=torch.bool, device=device) if smallest_only else None
    rows = [(samples.fold[tokens.owner] == index).nonzero()[:, 0] for index in (0, 1)]

    if chosen >= neurons:
        steps = options.screen_steps + options.refine_steps
        folds = (fold(0, rows[0]), fold(1, rows[1]))
        fit = _cross_fit(folds, (start, start), steps, largest, samples, options)
        everyone = torch.ones(neurons, dtype=torch.bool, device=device)
        return _pairs(fit, _polish(folds, fit, samples, options), everyone)

    def screening(index: int) -> _Fold:
        if budget >= total:
            return fold(index, rows[index])
        drawn, weight = draw_rows(importance.index_select(0, rows[index]), budget // 2, uniforms[index], ranks)
        return fold(index, rows[index].index_select(0, drawn), weight=weight)

    folds = (screening(0), screening(1))
    screened = _cross_fit(folds, (start, start), options.screen_steps, largest, samples, options)
    del folds
    order = score(screened.both.value, screened.both.vector).argsort(descending=True, stable=True)
    short = order[:chosen].sort().values
    folds = (fold(0, rows[0], short), fold(1, rows[1], short))
    vectors = (screened.vectors[0].index_select(1, short), screened.vectors[1].index_select(1, short))
    ends = screened.largest.index_select(0, short)
    fit = _cross_fit(folds, vectors, options.refine_steps, ends, samples, options)
    polished = _polish(folds, fit, samples, options)

    refined = torch.zeros(neurons, dtype=torch.bool, device=device)
    refined[short] = True
    pairs = _pairs(screened, screened.both, refined)
    pairs.held_out[short], pairs.standard_error[short] = fit.held_out, fit.standard_error
    pairs.value[short], pairs.residual[short] = polished.value, polished.residual
    pairs.vector[:, short] = polished.vector
    return pairs


def _cross_fit(
    folds: tuple[_Fold, _Fold],
    start: tuple[Tensor, Tensor],
    steps: int,
    largest: Tensor | None,
    samples: Samples,
    options: SolverOptions,
) -> _CrossFit:
    spaces = []
    for fold, vectors in zip(folds, start, strict=True):
        spaces.append(lanczos(fold.operator, vectors, steps, options.tolerance, largest))
    if largest is None:
        largest = _larger_end(spaces)
    first, second = (space.ritz(largest) for space in spaces)
    product, forms = folds[0].operator.product_and_forms(second.vector, folds[0].owner, samples.local)
    product_second, more = folds[1].operator.product_and_forms(first.vector, folds[1].owner, samples.local)
    held_out, standard_error = held_out_estimate(forms.add_(more), samples, folds[0].operator.ranks)
    # S of all samples is the mean of the folds' matrices, weighted by their sizes.
    share = samples.size(0) / samples.total
    both = combine(
        (first.vector, (1 - share) * product_second + share * first.product),
        (second.vector, share * product + (1 - share) * second.product),
        largest,
    )
    return _CrossFit(
        vectors=(first.vector, second.vector),
        both=both,
        largest=largest,
        held_out=held_out,
        standard_error=standard_error,
    )


def _polish(folds: tuple[_Fold, _Fold], fit: _CrossFit, samples: Samples, options: SolverOptions) -> Ritz:
    segments = [segment for fold in folds for segment in fold.operator.segments]
    operator = CurvatureOperator(segments, 1 / samples.total, folds[0].operator.ranks)
    start = fit.both
    space = lanczos(operator, start.vector, options.polish_steps, options.tolerance, fit.largest, start.product)
    return space.ritz(fit.largest)


def _pairs(fit: _CrossFit, ritz: Ritz, refined: Tensor) -> Eigenpairs:
    return Eigenpairs(
        held_out=fit.held_out,
        standard_error=fit.standard_error,
        value=ritz.value,
        vector=ritz.vector,
        residual=ritz.residual,
        largest=fit.largest,
        refined=refined,
    )


def _larger_end(spaces: list[Krylov]) -> Tensor:
    """Whether the upper end is the one of larger magnitude in both folds together, bool, shape `(n,)`."""
    first, second = (space.values for space in spaces)
    return first[:, -1] + second[:, -1] > -(first[:, 0] + second[:, 0])
