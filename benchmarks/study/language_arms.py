"""Which language models are trained from scratch, with which learning rates and seeds."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from .files import Run
from .language import LanguageArm, copied_, grown_, run_language, run_timing


UNIFORM = LanguageArm("4 blocks", 4)
# Trials with another seed chose the moment and the number of blocks.
STACKED = LanguageArm("2 blocks, stacked to 4", 2, events=(0.2,))
SILENT = replace(STACKED, name="2 blocks, silent copies to 4", event_=partial(copied_, how="copy"))
# What CIFAR-100 showed, as it was there.
LATER = replace(SILENT, name=f"{SILENT.name} at 0.4", events=(0.4,))
# With what is saved by beginning small: is the uniform model's loss reached sooner?
SOONER = replace(STACKED, name="2 blocks, stacked to 4, 70 % of the seconds", share=0.7)
# A trial: twice as many blocks, which are too many for these seconds.
DEEP = LanguageArm("8 blocks", 8)
DEEP_STACKED = LanguageArm("2 blocks, stacked to 8", 2, events=(0.25,), event_=partial(copied_, copies=3))
# Growth by curvature to the size of the uniform model, from MLPs of a quarter of the width or half of the blocks.
SIZE, MOMENTS = 197_184, (0.1, 0.25, 0.4)
DEFAULT = {"max_parameters": SIZE, "at": list(MOMENTS)}


def grows(name: str, way: str = "measured", blocks: int = 4, width: int = 32, **fields: Any) -> LanguageArm:
    """An arm that grows with these fields of `GrowthConfig`, and the default options otherwise."""
    event_ = partial(grown_, growth=DEFAULT | fields, way=way)
    return LanguageArm(name, blocks, width, MOMENTS, event_, timed=True)


GROWING = grows("growth")
TRIALS = (
    GROWING,
    LanguageArm("4 blocks, MLPs 32 wide", 4, 32, timed=True),
    grows("growth in width alone", criterion="width"),
    grows("growth of blocks, heads and neurons from 2 blocks", blocks=2, width=128, operator="any"),
)
RATES = (2e-3, 4e-3, 6e-3)

RATE = 6e-3  # the lowest validation loss of both with 4 blocks


def language_timing() -> Iterator[Run]:
    """Name, seed and function of the runs that time steps."""
    yield from (("timing", seed, partial(run_timing, seed)) for seed in range(3))


def language_tuning() -> Iterator[Run]:
    """Learning rates, on the validation split and a seed that nothing else uses."""
    tried = [(arm, rate) for arm in (UNIFORM, STACKED, DEEP) for rate in RATES]
    for arm, rate in (*tried, (DEEP_STACKED, RATES[0])):
        yield f"{arm.name}, {rate:g}", 100, partial(run_language, replace(arm, rate=rate), 100)


def language_trials() -> Iterator[Run]:
    """Ways to grow, and what they grow from, at the rate of the others; seed and split of the learning rates."""
    yield from ((arm.name, 100, partial(run_language, replace(arm, rate=RATE), 100)) for arm in TRIALS)


def language() -> Iterator[Run]:
    """A uniform model, and what gets a part of it on the way, with seeds that nothing was chosen by."""
    for seed in range(10, 20):
        for arm in (UNIFORM, STACKED, SILENT, SOONER, GROWING, LATER):
            yield arm.name, seed, partial(run_language, replace(arm, rate=RATE), seed, test=True)
