"""Means over seeds with Student's intervals, without a package for statistics."""

import math
from collections.abc import Sequence


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """
    The mean of independent values, and half the width of its 95 % interval by Student's t.

    Args:
        values (`Sequence[float]`): One value for each seed, at least one.

    Returns:
        `tuple[float, float | None]`: `None` for a single value, which says nothing of its spread.
    """
    number = len(values)
    mean = math.fsum(values) / number
    if number < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (number - 1)
    return mean, student_quantile(number - 1) * math.sqrt(variance / number)


def student_quantile(freedom: int) -> float:
    """The `t` between whose negative and itself Student's distribution holds 95 %."""
    low, high = 0.0, math.pi / 2  # angles: t = √freedom tan(angle)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _inside(angle: float, freedom: int) -> float:
    """Share of Student's distribution between ∓√freedom tan(angle): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
