"""Means with intervals: Student's t over seeds, paired where two arms saw the same data."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half width of its confidence interval; the half width of one value is NaN."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, error * float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1))


def bootstrap(
    first: dict[int, str], second: dict[int, str], samples: int, draws: int = 2_000
) -> tuple[float, float] | None:
    """
    The 95 % interval of a difference of accuracies when seeds and test samples are drawn anew, both at once. It is too
    wide rather than too narrow: what is by chance in single answers is drawn with both.

    Args:
        first, second (`dict[int, str]`): Of every seed which samples were answered right, as `evaluate_each` has it.
        samples (`int`): Number of test samples, the same ones for all seeds.
        draws (`int`, *optional*, defaults to 2000): Number of draws.

    Returns:
        `tuple[float, float]`: Its ends, as shares; None of fewer than two common seeds.
    """
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return None
    ours, theirs = (np.stack([unpacked(runs[seed], samples) for seed in seeds]) for runs in (first, second))
    generator = np.random.default_rng(0)
    of_seeds = generator.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), draws) / len(seeds)
    of_samples = generator.multinomial(samples, np.full(samples, 1 / samples), draws) / samples
    means = np.einsum("ds,sn,dn->d", of_seeds, ours - theirs, of_samples, optimize=True)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def unpacked(bits: str, samples: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """For every sample 1 if it was answered right, else 0."""
    raw = np.frombuffer(base64.b64decode(bits), np.uint8)
    return np.unpackbits(raw, count=samples).astype(np.float32)


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
