"""A growth history as cards and pictures need it: the sizes of the model in order, and what each event did where."""

import math
from dataclasses import dataclass
from typing import Any

from ..growth import GrowthEvent, GrowthHistory
from ..growth.operators import OPERATORS
from ..models.shapes import Shapes
from ..models.sites import Place


# In place of a name where no linear has a branch.
NO_LINEAR = "none"


@dataclass(frozen=True)
class State:
    """The size and shape of the model from `step` on."""

    step: int
    parameters: int
    macs: int
    widths: tuple[int, ...]  # hidden neurons of each block
    branches: tuple[dict[str, list[int]], ...]  # of each block: linear -> widths of its nested branches
    blocks: tuple[str, ...]  # paths in the base model

    def units(self, layer: int, linear: str) -> int:
        """Number of skip units of a linear, all depths together."""
        return sum(self.branches[layer].get(linear, []))


@dataclass(frozen=True)
class Growth:
    """What an event did to one linear."""

    layer: int  # number of its block
    linear: str
    nested: int  # 0 for the linear itself, 1 for the branch that feeds it, and so on
    operator: str
    candidates: int
    chosen: int
    eigenvalues: tuple[float, float, float]  # smallest, mean, largest of the chosen neurons
    predicted_gain: float

    @property
    def widens(self) -> bool:
        """Whether the linear became wider; otherwise it became deeper."""
        return not OPERATORS[self.operator].deepens


def states(history: GrowthHistory) -> list[State]:
    """The states of a history in order; the first is the model before any growth."""
    initial = history.initial
    found = [_state(0, initial.parameters, initial.macs, initial.shapes)]
    for event in history.events:
        # An event by hand knows no step: it is drawn one step after the one before it.
        step = found[-1].step + 1 if event.step is None else event.step
        found.append(_state(step, event.parameters_after, event.macs_after, event.shapes))
    return found


def parameters_at(found: list[State], step: int) -> int:
    """Parameters of the model at a training step; a growth counts from the step after it."""
    return next(state.parameters for state in reversed(found) if state.step < step or state is found[0])


def growths(event: GrowthEvent) -> list[Growth]:
    """
    The records of the linears that an event grew, checked.

    Raises:
        ValueError: If a record is not what a growth event writes.
    """
    try:
        return [_growth(record, blocks_of(event.shapes)) for record in event.layers]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The growth history is damaged: a record of a linear cannot be read ({error!r}).") from error


def _state(step: int, parameters: int, macs: int, shapes: Shapes) -> State:
    blocks = blocks_of(shapes)
    widths = dict.fromkeys(blocks, 0)
    branches: dict[str, dict[str, list[int]]] = {block: {} for block in blocks}
    for root, width in shapes.widths.items():
        widths[Place.parse(root).block] += width
    for root, sizes in shapes.skip_sizes.items():
        place = Place.parse(root)
        branches[place.block][place.linear] = list(sizes)
    return State(
        step=step,
        parameters=parameters,
        macs=macs,
        widths=tuple(widths.values()),
        branches=tuple(branches.values()),
        blocks=blocks,
    )


def blocks_of(shapes: Shapes) -> tuple[str, ...]:
    """Paths in the base model of the blocks, all of which have hidden neurons, in order: `"layers.0"`, …"""
    return tuple(dict.fromkeys(Place.parse(root).block for root in shapes.widths))


def linears_of(found: list[State]) -> list[str]:
    """Names in a block of the linears that have branches in the end; of one at least, for a picture of none."""
    names = [linear for branches in found[-1].branches for linear in branches]
    return list(dict.fromkeys(names)) or [NO_LINEAR]


def _growth(record: dict[str, Any], blocks: tuple[str, ...]) -> Growth:
    place = Place.parse(record["linear"])
    if record["operator"] not in OPERATORS:
        raise ValueError(f"{record['linear']!r} cannot grow by {record['operator']!r}")
    numbers = [record["eigenvalue"][key] for key in ("min", "mean", "max")] + [record["predicted_gain"]]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{numbers} are not finite")
    return Growth(
        layer=blocks.index(place.block),
        linear=place.linear,
        nested=place.depth,
        operator=record["operator"],
        candidates=int(record["candidates"]),
        chosen=int(record["chosen"]),
        eigenvalues=(float(numbers[0]), float(numbers[1]), float(numbers[2])),
        predicted_gain=float(numbers[3]),
    )
