"""Which units complement each other: orthogonal matching pursuit on the scores of the samples that choose."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..budget import Budget, Candidate
from .joint import Columns, supported


# What a unit must explain beyond the others counts in full only above this share of the mean square score.
_DAMPING = 0.01


def pursue(
    scores: Tensor,
    splits: Tensor,
    cost: Tensor,
    neuron: Tensor,
    admit: Callable[[int], bool],
) -> list[int]:
    """
    Choose units one after the other, each by what it adds to those already chosen, per cost.

    The loss of a sample changes by `d = Σ_j scores[j] c_j`, and with the empirical Fisher information for the
    curvature the mean loss by `E[d + ½ d²] = ½ E[(1 + d)²] - ½`. So the joint gain of a set of units is what a
    regression on their scores explains of -1, and what a unit adds is a step of orthogonal matching pursuit.

    Args:
        scores (`Tensor`): Of the samples that choose, scaled such that coefficients are of a size; float64, shape
            `(samples, units)`.
        splits (`Tensor`): Units whose coefficient must not be negative, bool, shape `(units,)`.
        cost (`Tensor`): What a unit costs, shape `(units,)`.
        neuron (`Tensor`): The neuron that a unit is of; each grows once. Int64, shape `(units,)`.
        admit (`Callable`): Takes a unit, and returns whether it fits into what is left of the budget; called once for
            a unit.

    Returns:
        `list[int]`: Units in the order in which they were chosen, not more than there are samples.
    """
    damping = _DAMPING * scores.square().mean()
    residual = -torch.ones(len(scores), dtype=scores.dtype, device=scores.device)
    # Of every unit: the correlation with what is left to explain, and the square of what is new in it.
    agreement, new = scores.t() @ residual, scores.square().sum(dim=0)
    whole = new.clone()
    open_, basis = whole > 0, scores.new_zeros(0, len(scores))
    chosen: list[int] = []
    while len(chosen) < len(scores):
        fits = open_ & ((agreement > 0) | ~splits)
        added = agreement.square() / (new.clamp_min(0) + damping * len(scores)) / cost
        best = int(added.where(fits, -1.0).argmax()) if len(added) else 0
        if not bool(fits.any()) or not float(added[best]) > 0:
            break
        if not admit(best):
            open_[best] = False
            continue
        chosen.append(best)
        open_ &= neuron != neuron[best]
        column = scores[:, best]
        for _ in range(2):  # the second time for the rounding errors of the first
            column = column - basis.t() @ (basis @ column)
        length = column.norm()
        if float(length) <= 1e-7 * float(whole[best].sqrt()):
            continue  # nothing new in it
        column = column / length
        basis = torch.cat([basis, column[None]])
        share, along = scores.t() @ column, column @ residual
        residual, agreement, new = residual - along * column, agreement - along * share, new - share.square()
    return chosen


def choose_together(
    candidates: Sequence[Candidate], columns: Columns, budget: Budget, share: float, significance: float
) -> tuple[list[int], tuple[float, float, int] | None]:
    """
    Greedy by what a candidate adds to those already chosen, per cost, as far as held-out samples gain.

    Args:
        candidates (`Sequence`): What could grow.
        columns ([`Columns`]): What each would do.
        budget ([`Budget`]): Pays for what is chosen.
        share (`float`): Share of the natural step that is judged.
        significance (`float`): Standard errors by which the gain must exceed 0.

    Returns:
        `tuple`: As [`supported`].
    """
    if not candidates:
        return [], None
    numbers: dict[tuple[str, int], int] = {}
    once = [numbers.setdefault(candidate.once, len(numbers)) for candidate in candidates]
    device = columns.values.device
    prices = torch.tensor([budget.price(each) for each in candidates], dtype=torch.float64, device=device)
    opening: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        if budget.timing is not None and candidate.opens is not None:
            opening.setdefault(candidate.opens, []).append(index)

    def admit(index: int) -> bool:
        if not budget.admit(candidates[index]):
            return False
        # The call of a branch is paid once: what else it holds is cheaper from now on.
        for other in opening.pop(candidates[index].opens or "", ()):
            prices[other] = budget.price(candidates[other])
        return True

    order = pursue(columns.fitted, columns.one_way, prices, torch.tensor(once, device=device), admit)
    return supported(columns, order, share, significance)
