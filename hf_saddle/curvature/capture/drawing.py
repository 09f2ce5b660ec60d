"""Unbiased selections of tokens: those of large importance are drawn for certain, others in proportion to it."""

import torch
from torch import Tensor

from ..ranks import Ranks


def rows_by_importance(importance: Tensor, rows: Tensor, budget: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """
    About `budget` of some `rows` of one rank, drawn by the importance of all, float64, shape `(tokens,)`, and their
    inverse probabilities.
    """
    chosen = importance.index_select(0, rows)
    total = chosen.sum()
    if not bool(torch.isfinite(total)):
        return rows[~torch.isfinite(chosen)][:budget], None  # to be found when the layer is solved
    if not bool(total > 0):
        return rows[:budget], None
    generator = torch.Generator().manual_seed(seed)
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
    drawn, weight = draw_rows(chosen, budget, uniform, Ranks())
    return rows.index_select(0, drawn), weight


def draw_rows(importance: Tensor, budget: int, uniform: float, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """
    Systematic sampling of tokens, with probabilities proportional to their importance (Madow 1949).

    Tokens are laid on a line, each as long as its probability `min(1, budget · importance / total)`; those hit by the
    points `uniform, uniform + 1, …` are taken. Neighbours (tokens of one sample) are thus never taken by a whim
    together, and the line runs over all ranks, so that what is drawn does not depend on how samples are spread over
    processes.

    Args:
        importance (`Tensor`): Not negative, float64, shape `(tokens,)`, of this rank.
        budget (`int`): Number of tokens wanted on all ranks together.
        uniform (`float`): The first point, in [0, 1).
        ranks (`Ranks`): Processes that share the line.

    Returns:
        `tuple[Tensor, Tensor]`: Rows, int64, and their inverse probabilities, float64.
    """
    total = ranks.sum(importance.sum())
    probability = (importance * (budget / total)).clamp(max=1)
    before, _ = ranks.before_and_total(probability.sum())
    position = torch.cumsum(probability, dim=0) + (before + uniform)
    points = position.ceil()
    points_before = torch.cat([(before + uniform).ceil().reshape(1), points[:-1]])
    rows = (points > points_before).nonzero()[:, 0]
    return rows, 1 / probability[rows]
