"""A priced search for the best static shape: widths of the two MLPs, by successive halving on the validation split."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from math import inf
from typing import Any

from hf_saddle.growth import count_parameters

from .files import results
from .task import make_model, shape
from .training import Arm, run


Pair = tuple[int, int]
WIDTHS = (4, 24, 48, 72, 92)
# Experiments in turn, the share of a whole run that each gives its pairs, and how many of the best go on to the next.
ROUNDS = {"shapes_quarter": (0.25, 5), "shapes_half": (0.5, 2), "shapes": (1.0, 1)}


def uneven(pair: Pair) -> dict[str, Any]:
    """Fields of the config of a model with MLPs of these widths."""
    return shape(4) | {"widths": {f"layers.{layer}.mlp.fc1": width for layer, width in enumerate(pair)}}


def static_name(pair: Pair) -> str:
    """The arm of a pair of widths."""
    return f"static, MLPs {pair[0]} and {pair[1]} wide"


def pairs(most: int) -> list[Pair]:
    """All pairs of widths whose models have at most so many parameters."""
    return [pair for pair in product(WIDTHS, repeat=2) if count_parameters(make_model(0, uneven(pair))) <= most]


def entrants(experiment: str, most: int) -> list[Pair]:
    """The pairs that a round compares: all in the first, then those that the round before let go on."""
    rounds = list(ROUNDS)
    place = rounds.index(experiment)
    return survivors(rounds[place - 1], most) if place else pairs(most)


def survivors(experiment: str, most: int) -> list[Pair]:
    """The pairs that a round lets go on, those of the lowest validation loss, the lowest first."""
    losses = {row["arm"]: row["validation"]["loss"] for row in results(experiment)}
    ranked = sorted(entrants(experiment, most), key=lambda pair: losses.get(static_name(pair), inf))
    return ranked[: ROUNDS[experiment][1]]


def search(
    experiment: str, whole: Arm, most: int, seed: int
) -> Iterator[tuple[str, int, Callable[[], dict[str, Any]]]]:
    """The runs of a round, each of them a share of a whole one, with its schedule to the end."""
    for pair in entrants(experiment, most):
        arm = replace(whole, name=static_name(pair), shape=uneven(pair), budget=ROUNDS[experiment][0] * whole.budget)
        yield arm.name, seed, partial(run, arm, seed)
