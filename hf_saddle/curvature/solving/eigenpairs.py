"""Extreme eigenpairs of all curvature matrices of a layer: screen every neuron on few tokens, refine a shortlist."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..capture.drawing import draw_rows
from ..capture.tokens import Tokens
from ..ranks import Ranks
from ..samples import Samples
from ..settings import SolverOptions
from .folds import Fold, starts
from .lanczos import Krylov, Ritz, combine, lanczos
from .operator import CurvatureOperator
from .significance import held_out_estimate
from .whitening import unit_directions, whitened_inputs


# Of about so many tokens and at least so many samples the sizes of coefficients are taken.
_SIZED_TOKENS, _SIZED_SAMPLES = 4096, 8


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

    def put(self, neurons: Tensor, ritz: Ritz) -> None:
        """Overwrite what was found for some neurons, int64, but for what is held out."""
        self.value[neurons], self.residual[neurons] = ritz.value, ritz.residual
        self.vector[:, neurons] = ritz.vector

    def unwhitened(self, factor: Tensor) -> "Eigenpairs":
        """Eigenpairs as unit directions with their quadratic forms `vᵀ S v`; residuals in the same unit."""
        vector, length = unit_directions(factor, self.vector)
        square = length.square()
        return replace(
            self,
            vector=vector,
            value=self.value / square,
            residual=self.residual / square,
            held_out=self.held_out / square.double(),
            standard_error=self.standard_error / square.double(),
        )


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
    whitening: Tensor | None,
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
        whitening (`Tensor`, *optional*): The factor `L`, shape `(groups, d + 1, d + 1)`, of the whitened coordinates
            that all vectors are in.
    """

    transform = None if whitening is None else partial(whitened_inputs, whitening)

    def fold(index: int, rows: Tensor, neurons: Tensor | None = None, weight: Tensor | None = None) -> Fold:
        owner = tokens.owner.index_select(0, rows)
        of_vectors = whitening if neurons is not None and few else None
        inputs, coefficients = tokens.segment(rows, neurons, transform if of_vectors is None else None)
        of_token = [-1] + [1] * (coefficients.dim() - 1)
        if weight is not None:
            coefficients.mul_(weight.to(coefficients.dtype).view(of_token))
        if flip:
            coefficients.mul_(samples.sign[owner].to(coefficients.dtype).view(of_token))
        return Fold(CurvatureOperator([(inputs, coefficients)], 1 / samples.size(index), ranks), owner, of_vectors)

    neurons, device = tokens.neurons, importance.device
    uniforms = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    total = int(ranks.sum(torch.tensor(len(tokens), device=device)))
    budget = max(math.ceil(options.screen_tokens * total), options.screen_floor)
    chosen = _whole_columns(max(options.shortlist * neurons, options.shortlist_floor))
    # Of few neurons of one group it is less work to whiten the vectors in each product than the inputs once.
    few = tokens.inputs.dim() == 2 and 4 * (options.refine_steps + options.polish_steps) * chosen * tokens.rows < total
    largest = torch.zeros(neurons, dtype=torch.bool, device=device) if smallest_only else None
    rows = [(samples.fold[tokens.owner] == index).nonzero()[:, 0] for index in (0, 1)]

    if chosen >= neurons:
        steps = options.screen_steps + options.refine_steps
        folds = (fold(0, rows[0]), fold(1, rows[1]))
        fit = _cross_fit(folds, starts(folds, start), steps, largest, samples, options)
        everyone = torch.ones(neurons, dtype=torch.bool, device=device)
        return _pairs(fit, _polish(folds, fit.both, fit.largest, samples, options), everyone)

    def screening(index: int) -> Fold:
        if budget >= total:
            return fold(index, rows[index])
        drawn, weight = draw_rows(importance.index_select(0, rows[index]), budget // 2, uniforms[index], ranks)
        return fold(index, rows[index].index_select(0, drawn), weight=weight)

    folds = (screening(0), screening(1))
    screened = _cross_fit(folds, starts(folds, start), options.screen_steps, largest, samples, options)
    del folds
    gains = score(screened.both.value, screened.both.vector)
    if tokens.rows == 2:
        # Few tokens tell eigenvalues of gated neurons badly; how large coefficients are is cheap to know better.
        every = max(1, min(total // _SIZED_TOKENS, samples.total // _SIZED_SAMPLES))
        sized = ((samples.first + tokens.owner) % every == 0).nonzero()[:, 0]
        size = ranks.sum(tokens.coefficient_squares(sized)).sqrt()
        gains = gains * score(-size if smallest_only else size, start / start.norm(dim=0))
    order = gains.argsort(descending=True, stable=True)
    short = order[:chosen].sort().values
    folds = (fold(0, rows[0], short), fold(1, rows[1], short))
    vectors = (screened.vectors[0].index_select(1, short), screened.vectors[1].index_select(1, short))
    ends = screened.largest.index_select(0, short)
    fit = _cross_fit(folds, vectors, options.refine_steps, ends, samples, options)

    refined = torch.zeros(neurons, dtype=torch.bool, device=device)
    refined[short] = True
    pairs = _pairs(screened, screened.both, refined)
    pairs.held_out[short], pairs.standard_error[short] = fit.held_out, fit.standard_error
    pairs.put(short, fit.both)

    best = score(pairs.value, pairs.vector)[short].argsort(descending=True, stable=True)
    best = best[: _whole_columns(options.leaders * chosen)].sort().values
    folds, ends = (folds[0].of(best), folds[1].of(best)), ends.index_select(0, best)
    pairs.put(short[best], _polish(folds, fit.both.of(best), ends, samples, options))
    return pairs


def _cross_fit(
    folds: tuple[Fold, Fold],
    start: tuple[Tensor, Tensor],
    steps: int,
    largest: Tensor | None,
    samples: Samples,
    options: SolverOptions,
) -> _CrossFit:
    spaces = []
    for fold, vectors in zip(folds, start, strict=True):
        spaces.append(lanczos(fold.product, vectors, steps, options.tolerance, largest))
    if largest is None:
        largest = _larger_end(spaces)
    first, second = (space.ritz(largest) for space in spaces)
    product, forms = folds[0].product_and_forms(second.vector, samples.local)
    product_second, more = folds[1].product_and_forms(first.vector, samples.local)
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


def _polish(folds: tuple[Fold, Fold], start: Ritz, largest: Tensor, samples: Samples, options: SolverOptions) -> Ritz:
    first, second = (fold.operator for fold in folds)
    segments = [*first.segments, *second.segments]
    both = replace(folds[0], operator=replace(first, segments=segments, scale=1 / samples.total))
    space = lanczos(both.product, start.vector, options.polish_steps, options.tolerance, largest, start.product)
    return space.ritz(largest)


def _whole_columns(count: float) -> int:
    """A number of neurons, rounded up: products with more than a few are a good deal faster on multiples of 32."""
    return 32 * math.ceil(count / 32) if count > 32 else math.ceil(count)


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
