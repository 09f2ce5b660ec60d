"""Means with intervals: Student's t over seeds, paired where two arms saw the same data."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half width of its confidence interval; the half width of one value is NaN."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, error * float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1))


def paired(values: dict[int, float], others: dict[int, float]) -> list[float]:
    """Differences over the seeds that both have."""
    return [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]


def text(values: Sequence[float], scale: float = 1.0, digits: int = 2, sign: bool = False) -> str:
    """`mean ± half width`, or a dash where there is nothing."""
    if not values:
        return "–"
    mean, half = interval([value * scale for value in values])
    shown = f"{mean:{'+' if sign else ''}.{digits}f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.{digits}f}"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's."""
    return float(stats.spearmanr(first, second).statistic)
