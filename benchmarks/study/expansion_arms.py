"""Which arms of expansion are run with which learning rates and seeds."""

from collections.abc import Iterator
from functools import partial

from .expansion import ARMS, FULL, SLOWLY, run_expansion, run_timing
from .files import Run, results


RATES = (1e-3, 3e-3, 1e-2, 3e-2)
LOWER = (1e-4, 3e-4)  # of full fine-tuning, which may learn less and forget less
SLOW = 3e-4  # at which it forgets less than new blocks in `expansion_tuning`, and learns more
TUNING_SEED, SEEDS = 100, range(10, 20)


def expansion_timing() -> Iterator[Run]:
    """What steps and expansions take."""
    yield from (("timing", seed, partial(run_timing, seed)) for seed in range(2))


def expansion_tuning() -> Iterator[Run]:
    """Learning rates of all arms, on the validation split and a seed that nothing else uses."""
    for arm in ARMS:
        for rate in (*(LOWER if arm == FULL else ()), *RATES):
            yield f"{arm}, {rate:g}", TUNING_SEED, partial(run_expansion, arm, rate, TUNING_SEED)


def best_rate(arm: str) -> float:
    """The rate of the lowest validation loss on the new text in `expansion_tuning`."""
    rows = [row for row in results("expansion_tuning") if row["arm"] == f"{arm}, {row['rate']:g}"]
    return min(rows, key=lambda row: row["validation"]["loss"], default={"rate": RATES[0]})["rate"]


def expansion() -> Iterator[Run]:
    """Every arm at its own best rate, and full fine-tuning at a small one, with seeds that nothing was chosen by."""
    for seed in SEEDS:
        for arm in ARMS:
            yield arm, seed, partial(run_expansion, arm, best_rate(arm), seed, test=True)
        yield SLOWLY, seed, partial(run_expansion, FULL, SLOW, seed, test=True)
