"""What candidates of any kind would gain together: a regression on scores of some samples, judged on others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


# What is added to the diagonal of the Fisher information of the candidates, as a share of its mean.
RIDGE = 0.3


@dataclass(frozen=True, eq=False)
class Columns:
    """
    What candidates would do, sample by sample: with coefficients `c` the loss of sample `n` changes by
    `Σ_j values[n, j] c_j` to first order.

    Attributes:
        values (`Tensor`): Shape `(samples, candidates)`, float64, in a scale in which coefficients are of a size.
        judges (`Tensor`): Samples that nothing is fitted to, bool, shape `(samples,)`.
        scale (`Tensor`): What a coefficient of 1 is in the candidate's own terms, shape `(candidates,)`.
        low, high (`Tensor`): Bounds of the coefficients, shape `(candidates,)`; infinite where there is none.
        terms (`float`): Number of predictions that the loss of a sample is the mean of, see
            [`~hf_saddle.curvature.UnitScores`].
    """

    values: Tensor
    judges: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    terms: float = 1.0

    @classmethod
    def unbounded(cls, scores: Tensor, judges: Tensor, terms: float = 1.0) -> "Columns":
        """Scores whose coefficients may be of any size and sign."""
        values = scores.double()
        far = torch.full_like(values[0], torch.inf)
        return cls(values, judges, torch.ones_like(far), -far, far, terms)

    @property
    def one_way(self) -> Tensor:
        """Candidates whose coefficient must not be negative, bool, shape `(candidates,)`."""
        return self.low >= 0

    @property
    def fitted(self) -> Tensor:
        """Scores of the samples that choose."""
        return self.values[~self.judges]

    def of(self, chosen: Sequence[int]) -> "Columns":
        """Those of some of the candidates."""
        index = torch.as_tensor(chosen, dtype=torch.int64, device=self.values.device)
        parts = {name: getattr(self, name).index_select(0, index) for name in ("scale", "low", "high")}
        return replace(self, values=self.values.index_select(1, index), **parts)

    def rescaled(self, factor: Tensor) -> "Columns":
        """The same in a scale in which coefficients are smaller by a factor, shape `(candidates,)` or `()`."""
        return Columns(
            self.values * factor, self.judges, self.scale * factor, self.low / factor, self.high / factor, self.terms
        )


def beside(parts: Sequence[Columns]) -> Columns:
    """
    Candidates of several kinds as those of one regression. Scores of each kind are brought to a root mean square of 1,
    so that those of no kind drown in what the regression adds to the information of all.
    """
    alike = [part.rescaled(1.0 / _size(part.fitted)) for part in parts]
    names = ("scale", "low", "high")
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in alike]) for name in names}
    return replace(alike[0], values=torch.cat([part.values for part in alike], 1), **joined)


def _size(values: Tensor) -> Tensor:
    """The root mean square, or 1 where all is 0."""
    size = values.square().mean().sqrt() if values.numel() else values.new_zeros(())
    return torch.where(size > 0, size, 1.0)


@dataclass(frozen=True, eq=False)
class Judgement:
    """
    What held-out samples say of a step.

    Attributes:
        coefficients (`Tensor`): The step that was judged, in the candidates' own terms, shape `(candidates,)`.
        slopes (`Tensor`): Decrease of the loss by each, to first order in the length of the step, `(candidates,)`.
        gain (`float`): Estimated decrease of the loss.
        error (`float`): Its standard error.
    """

    coefficients: Tensor
    slopes: Tensor
    gain: float
    error: float

    @property
    def slope(self) -> float:
        """Decrease of the loss to first order in the length of the step, exact up to the choice of samples."""
        return float(self.slopes.sum())

    def of(self, entries: Sequence[int]) -> "Judgement":
        """The same for parts of the candidates, of each of which it is said whose part it is."""
        index = torch.as_tensor(entries, device=self.slopes.device)
        slopes = self.slopes / index.bincount(minlength=len(self.slopes))
        return replace(self, coefficients=self.coefficients[index], slopes=slopes[index])

    def shares_of(self, gain: float) -> Tensor:
        """A decrease of the loss divided between the candidates, in proportion to their slopes."""
        return self.slopes * (gain / self.slope if self.slope else 0.0)


def judge(columns: Columns, share: float) -> Judgement:
    """
    A share of the natural step, fitted to the samples that choose and judged on the others.

    The step `c = -(m E[u uᵀ] + ridge)⁻¹ E[u]` stays within the bounds of the coefficients. The loss of a sample
    changes by `d = Σ_j u_j c_j`, and the decrease is `-E[d + ½ m d²]`: to first order what the candidates do, less the
    empirical Fisher information for what they do to each other, with `m` the `terms` of the scores.

    Raises:
        ValueError: If there are fewer than two samples that judge.
    """
    held_out = columns.values[columns.judges]
    if len(held_out) < 2:
        raise ValueError("A step is judged on samples that it was not fitted to: score the growths with `judging`.")
    step = share * natural_step(columns)
    parts = held_out * step
    change = parts.sum(dim=1)
    decrease = -(change + 0.5 * columns.terms * change.square())
    return Judgement(
        coefficients=step * columns.scale,
        slopes=-parts.mean(dim=0),
        gain=float(decrease.mean()),
        error=float(decrease.std() / len(decrease) ** 0.5),
    )


def natural_step(columns: Columns) -> Tensor:
    """The natural step within its bounds; what meets a bound stays there, and the rest is solved."""
    values = columns.fitted
    fisher, slope = values.t() @ values * (columns.terms / len(values)), values.mean(dim=0)
    fisher.diagonal().add_(RIDGE * fisher.diagonal().mean().clamp_min(torch.finfo(fisher.dtype).tiny))
    step, free = torch.zeros_like(slope), torch.ones_like(slope, dtype=torch.bool)
    while bool(free.any()):
        inner = fisher[free][:, free]
        step[free] = -torch.linalg.solve(inner, slope[free] + fisher[free][:, ~free] @ step[~free])
        beyond = free & ((step < columns.low) | (step > columns.high))
        step = step.minimum(columns.high).maximum(columns.low)
        if not bool(beyond.any()):
            break
        free &= ~beyond
    return step


def held_out_gain(scores: Tensor, terms: float = 1.0) -> float:
    """
    What a joint natural step, fitted to every second sample, is expected to gain on the others, in nats.

    Args:
        scores (`Tensor`): Shape `(samples, candidates)`.
        terms (`float`, *optional*, defaults to 1.0): See [`Columns`].
    """
    judges = torch.arange(len(scores), device=scores.device) % 2 == 1
    return judge(Columns.unbounded(scores, judges, terms), 1.0).gain


def supported(
    columns: Columns, order: Sequence[int], share: float, significance: float
) -> tuple[list[int], tuple[float, float, int] | None]:
    """
    As many of the candidates, in their order, as held-out samples gain most by; none where that gain is not
    significant.

    Args:
        columns ([`Columns`]): Of all candidates.
        order (`Sequence[int]`): Candidates, the best first.
        share (`float`): Share of the natural step.
        significance (`float`): Standard errors by which the gain must exceed 0.

    Returns:
        `tuple`: The candidates; and the decrease of the loss that is estimated for that many, its standard error, and
        their number, `None` where none was offered.
    """
    sizes, size = [], 1.0
    while round(size) < len(order):
        sizes.append(round(size))
        size = max(size * 1.2, size + 1)
    judged = [(judge(columns.of(order[:number]), share), number) for number in (*sizes, len(order)) if number]
    if not judged:
        return [], None
    best, number = max(judged, key=lambda found: found[0].gain)
    pays = best.gain > significance * best.error
    return list(order[:number]) if pays else [], (best.gain, best.error, number)
