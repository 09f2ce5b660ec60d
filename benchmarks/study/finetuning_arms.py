"""Which methods of fine-tuning are run with which learning rates and seeds."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from .files import Run
from .finetuning import HEAD_RATE, METHODS, run


RATES = (3e-4, 1e-3, 3e-3, 1e-2)
HEAD_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
# Where the best was at an end of these, the range was extended.
FURTHER = {
    "LoRA, ranks by gradient": (1e-5, 3e-5, 1e-4),
    "AdaLoRA": (1e-5, 3e-5, 1e-4),
    "zero gain": (3e-2, 1e-1),
    "zero gain, random": (3e-2, 1e-1),
    "zero gain, whitened": (3e-2, 1e-1),
    "zero gain, whitened, line search": (3e-2, 1e-1),
    "zero gain, random, line search": (3e-2, 1e-1),
    "zero gain on q and v, whitened, line search": (3e-2, 1e-1),
    "zero gain on q and v, random, line search": (3e-2, 1e-1),
    "zero gain, whitened, three events": (3e-2, 1e-1),
    "everything": (1e-5, 3e-5, 1e-4),
    "zero gain, whitened, and everything": (1e-5, 3e-5, 1e-4),
}
TUNING_SEED, SEEDS = 100, 5
RANKED_SEEDS = 10  # of the methods with adapters, for which a claim is made
# Of each method, the learning rate of all but the head with the lowest validation loss in `finetuning_tuning`, where
# that has been run.
CHOSEN = {
    "head only": 0.0,
    "LoRA on q and v": 3e-3,
    "LoRA on all linears": 1e-3,
    "LoRA, ranks by curvature": 3e-3,
    "LoRA, ranks by curvature, exchanged": 1e-3,
    "LoRA, ranks by gradient": 3e-4,
    "LoRA on q and v, ranks by curvature": 3e-3,
    "AdaLoRA": 3e-4,
    "zero gain": 1e-2,
    "zero gain, random": 3e-2,
    "zero gain, whitened": 3e-2,
    "zero gain, whitened, line search": 3e-2,
    "zero gain, random, line search": 3e-2,
    "zero gain on q and v, whitened, line search": 3e-2,
    "zero gain on q and v, random, line search": 3e-2,
    "zero gain, whitened, three events": 1e-1,
    "everything": 1e-5,
    "zero gain, whitened, and everything": 1e-5,
}


class Other(NamedTuple):
    """Another task, on which some methods with adapters are compared."""

    chosen: dict[str, float]  # learning rates, as in `CHOSEN`
    further: dict[str, tuple[float, ...]] = {}  # as `FURTHER`
    head_rate: float = HEAD_RATE
    head_rates: tuple[float, ...] = ()  # that were tried


OTHERS = {
    "digits": Other(dict.fromkeys(("LoRA on q and v", "LoRA on all linears", "LoRA, ranks by curvature"), 1e-3)),
    "glosses": Other(
        {
            "LoRA on q and v": 3e-3,
            "LoRA on all linears": 3e-3,
            "LoRA, ranks by curvature": 3e-3,
            "LoRA, ranks by curvature, exchanged": 3e-3,
            "AdaLoRA": 1e-2,
        },
        further={"AdaLoRA": (3e-2, 1e-1)},
        head_rate=3e-2,
        head_rates=(*HEAD_RATES, 1e-1),
    ),
}


def finetuning_tuning() -> Iterator[Run]:
    """Learning rates of all methods, on the validation split and a seed that nothing else uses."""
    for rate in HEAD_RATES:
        run_it = partial(run, "head only", 0.0, TUNING_SEED, test=False, head_rate=rate)
        yield f"head only, {rate:g}", TUNING_SEED, run_it
    for name in METHODS:
        if name != "head only":
            for rate in (*RATES, *FURTHER.get(name, ())):
                yield f"{name}, {rate:g}", TUNING_SEED, partial(run, name, rate, TUNING_SEED, test=False)


def finetuning() -> Iterator[Run]:
    """All methods, each with its own rate; the test split is read once, at the end of each run."""
    for name, rate in CHOSEN.items():
        for seed in range(SEEDS if METHODS[name].lora is None else RANKED_SEEDS):
            yield name, seed, partial(run, name, rate, seed, test=True)


def ranks_tuning(task: str) -> Iterator[Run]:
    """Learning rates of the adapters, and of the head, on another task."""
    other = OTHERS[task]
    for rate in other.head_rates:
        run_it = partial(run, "head only", 0.0, TUNING_SEED, test=False, head_rate=rate, task=task)
        yield f"head only, {rate:g}", TUNING_SEED, run_it
    for name in other.chosen:
        for rate in (*RATES, *other.further.get(name, ())):
            run_it = partial(run, name, rate, TUNING_SEED, test=False, head_rate=other.head_rate, task=task)
            yield f"{name}, {rate:g}", TUNING_SEED, run_it


def ranks(task: str) -> Iterator[Run]:
    """The adapters on another task, each with its own rate; the test split is read once, at the end of each run."""
    other = OTHERS[task]
    for seed in range(RANKED_SEEDS):
        for name, rate in other.chosen.items():
            yield name, seed, partial(run, name, rate, seed, test=True, head_rate=other.head_rate, task=task)
