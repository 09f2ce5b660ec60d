"""ViTs on CIFAR-100 in equal seconds: at which budget the larger one wins, and what growth does there."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from .files import Run, results
from .training import BATCH, FILLED, Arm, run


EPOCH = 45_000 // BATCH  # steps
TUNING_SEED = 100
# Deviations of weights at the start: the default of transformers, and one over the root of the width, which learns
# faster.
USUAL, LARGER = 0.02, 0.125
# Budgets in epochs of the large model, with which of these starts, learning rates and widths of the MLPs.
TRIED = (
    *product((8, 16), (USUAL,), (1e-3, 2e-3, 4e-3), (64, 256)),
    *product((16,), (LARGER,), (3e-3,), (16, 64, 128, 256)),
    *product((32,), (LARGER,), (3e-3,), (16, 64, 256)),
)


def cifar_shape(width: int, spread: float = LARGER) -> dict[str, Any]:
    """Fields of a `SaddleViTConfig`; `width` is that of the MLPs."""
    return {
        "image_size": 32,
        "num_channels": 3,
        "num_labels": 100,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "patch_size": 8,
        "intermediate_size": width,
        "initializer_range": spread,
    }


SMALL, LARGE = cifar_shape(16), cifar_shape(256)


def arm(name: str, shape: dict[str, Any], epochs: int, rate: float, **fields: Any) -> Arm:
    """An arm that spends the seconds of so many epochs of the large model."""
    budget = float(epochs * EPOCH)
    return Arm(name, shape, budget, "seconds", rate, task="cifar-100", reference=LARGE, **fields)


def uniform(shape: dict[str, Any], epochs: int, rate: float) -> Arm:
    """A model that does not grow."""
    return arm(f"uniform, MLPs {shape['intermediate_size']} wide", shape, epochs, rate)


def budget_name(epochs: int, spread: float, rate: float, width: int) -> str:
    """The run of a budget."""
    return f"{epochs} epochs, weights from {spread:g}, {rate:g}: uniform, MLPs {width} wide"


def cifar_budgets() -> Iterator[Run]:
    """Uniform models by budget, start and learning rate, on the validation split and a seed that nothing else uses."""
    for epochs, spread, rate, width in TRIED:
        name = budget_name(epochs, spread, rate, width)
        found = uniform(cifar_shape(width, spread), epochs, rate)
        yield name, TUNING_SEED, partial(run, replace(found, name=name), TUNING_SEED)


# ----------------------------------------------------------------------------- where the large one wins
BUDGET_EPOCHS, RATE = 16, 3e-3
# Beside the rate of the budgets and trials. Stacking takes that of the model it ends as, which is the same.
LOWER, HIGHER = 1.5e-3, 6e-3
MOMENTS = (0.1, 0.25, 0.4)
PROBE = {"probe_samples": 2_048, "probe_batch_size": 256}
SIZE = 220_068  # parameters of the large model
BLOCKS = PROBE | {"max_parameters": 120_996}  # of the middle one


def grows(name: str, way: str = "measured", epochs: int = BUDGET_EPOCHS, **fields: Any) -> Arm:
    """The small model growing to the size of the large one, with the default options but for these fields."""
    growth = PROBE | {"max_parameters": SIZE} | fields
    return arm(name, SMALL, epochs, RATE, events=MOMENTS, growth=growth, way=way)


GROWING = grows("growth")
WIDENED = grows("growth, width", criterion="width", **FILLED)
RANDOM = grows("growth, width, random in the same linears", way="matched", criterion="width", **FILLED)
ANY = grows("growth of blocks, heads and neurons", operator="any")
UNEVEN = grows("uneven halves", way="uneven")
SMALLEST, MIDDLE, WIDER, LARGEST = UNIFORM = tuple(
    uniform(shape, BUDGET_EPOCHS, RATE) for shape in (SMALL, cifar_shape(64), cifar_shape(128), LARGE)
)
ONE, SHALLOW, THREE = (
    replace(MIDDLE, name=f"{MIDDLE.name}, {name}", shape=MIDDLE.shape | {"num_hidden_layers": blocks})
    for name, blocks in (("1 block", 1), ("2 blocks", 2), ("3 blocks", 3))
)
# Every block is followed by a plain copy of itself, once this share of the budget is spent.
STACKS = tuple(
    replace(SHALLOW, name=f"2 blocks, stacked to 4 at {share:g}", events=(share,), growth=PROBE, way="stacked")
    for share in (0.2, 0.4, 0.6)
)
STACKED = STACKS[1]
# The copies are silent, so that what the model computes does not change.
SILENTS = tuple(
    replace(found, name=f"2 blocks, silent copies at {found.events[0]:g}", growth=BLOCKS, way="even")
    for found in STACKS[1:]
)
SILENT = SILENTS[0]
TWICE = replace(ONE, name="1 block, stacked at 0.15 and 0.45", events=(0.15, 0.45), growth=PROBE, way="stacked")
FASTER = replace(STACKED, name=f"{STACKED.name}, {HIGHER:g}", learning_rate=HIGHER)
TRIALS = (
    grows("growth with 32 epochs", epochs=32),
    WIDENED,
    GROWING,
    UNEVEN,
    grows("growth, all that the size allows", **FILLED),
    ANY,
    SHALLOW,
    THREE,
    *STACKS,
    TWICE,
    *SILENTS,
    FASTER,
)


def cifar_trials() -> Iterator[Run]:
    """Ways to grow, on the validation split and the seed of the learning rates."""
    yield from ((found.name, TUNING_SEED, partial(run, found, TUNING_SEED)) for found in TRIALS)


SWEPT = (
    *((found, rate) for found in (MIDDLE, LARGEST) for rate in (LOWER, HIGHER)),
    *((found, HIGHER) for found in (WIDENED, GROWING)),
)
# Is the loss of the uniform model reached sooner?
SOONER, SILENT_SOONER = (
    replace(found, name=f"{found.name}, 70 % of the seconds", budget=0.7 * found.budget) for found in (STACKED, SILENT)
)
# What is tested: uniform models, blocks by stacking, width by curvature and at random, the default options, and all
# that can grow.
FINAL = (MIDDLE, STACKED, SILENT, LARGEST, WIDENED, GROWING, SOONER, SILENT_SOONER, THREE, WIDER, RANDOM, ANY)
# Arms that take the rate of another, from which they differ in one thing.
RATE_OF = {RANDOM.name: WIDENED, ANY.name: GROWING}


def cifar_tuning() -> Iterator[Run]:
    """Other learning rates of the arms, on the same split and seed."""
    for found, rate in SWEPT:
        tuned = replace(found, name=f"{found.name}, {rate:g}", learning_rate=rate)
        yield tuned.name, TUNING_SEED, partial(run, tuned, TUNING_SEED)


def tuned_losses(found: Arm) -> dict[float, float]:
    """Validation losses by learning rate."""
    budget = budget_name(BUDGET_EPOCHS, LARGER, RATE, found.shape["intermediate_size"])
    at_rate = {budget} if found in UNIFORM else {found.name}
    names = at_rate | {f"{found.name}, {rate:g}" for rate in (LOWER, HIGHER)}
    rows = (*results("cifar_budgets"), *results("cifar_trials"), *results("cifar_tuning"))
    return {row["learning_rate"]: row["validation"]["loss"] for row in rows if row["arm"] in names}


def at_best_rate(found: Arm) -> Arm:
    """The arm at the rate of its lowest validation loss."""
    losses = tuned_losses(RATE_OF.get(found.name, found))
    return replace(found, learning_rate=min(losses, key=losses.__getitem__, default=RATE))


def cifar() -> Iterator[Run]:
    """The final arms at their best rates, with seeds that nothing was chosen by: five, and ten of what may be best."""
    for seed in range(80, 90):
        for found in FINAL if seed < 85 else (MIDDLE, THREE, WIDER, STACKED, SILENT):
            yield found.name, seed, partial(run, replace(at_best_rate(found), test=True), seed)
