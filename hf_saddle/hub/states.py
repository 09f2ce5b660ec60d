"""A growth history as cards and pictures need it: the sizes of the model in order, and what each event did where."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..growth import GrowthEvent, GrowthHistory
from ..growth.block_records import blocks_with, new_blocks
from ..growth.operators import HEAD_OPERATORS, OPERATORS
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.shapes import Shapes
from ..models.sites import Place
from .escape import number
from .record import CLOCK


# How to read eigenvalues, on pictures and pages.
READING = (
    "Farther from zero: the loss would fall more per squared length of a step. Width needs values below zero, depth "
    "takes either sign."
)


@dataclass(frozen=True)
class State:
    """The size and shape of the model from `step` on."""

    step: int
    parameters: int
    macs: int
    widths: tuple[int, ...]  # hidden neurons of each layer
    branches: tuple[dict[str, list[int]], ...]  # of each layer: linear -> widths of its nested branches
    heads: tuple[int, ...]  # attention heads that each layer has gained

    def units(self, layer: int, linear: str) -> int:
        """Number of skip units of a linear, all depths together."""
        return sum(self.branches[layer].get(linear, []))


@dataclass(frozen=True)
class Baseline:
    """The same training without growth."""

    parameters: int
    log: list[dict[str, float]]


@dataclass(frozen=True)
class Growth:
    """What an event did to one linear."""

    layer: int
    linear: str
    nested: int  # 0 for the linear itself, 1 for the branch that feeds it, and so on
    operator: str
    candidates: int
    chosen: int
    eigenvalues: tuple[float, float, float]  # smallest, mean, largest of the chosen neurons
    predicted_gain: float

    @property
    def widens(self) -> bool:
        """Whether the linear became wider, or the attention got heads; otherwise it became deeper."""
        return self.of_heads or not OPERATORS[self.operator].deepens

    @property
    def of_heads(self) -> bool:
        """Whether heads of an attention module grew."""
        return self.operator in HEAD_OPERATORS


def states(history: GrowthHistory) -> list[State]:
    """
    The states of a history in order; the first is the model before any growth. Layers are counted as in the last one:
    blocks that are not there yet have no neurons.
    """
    initial, places = history.initial, _last_places(history)
    number = len(places[-1])
    found = [_state(0, initial.parameters, initial.macs, initial.shapes, places[0], number)]
    for event, own in zip(history.events, places[1:], strict=True):
        # An event by hand knows no step: it is drawn one step after the one before it.
        step = found[-1].step + 1 if event.step is None else event.step
        state = _state(step, event.parameters_after, event.macs_after, event.shapes, own, number)
        heads = list(found[-1].heads)
        for growth in growths(event):
            heads[own[growth.layer]] += growth.chosen if growth.of_heads else 0
        found.append(replace(state, heads=tuple(heads)))
    return found


def _last_places(history: GrowthHistory) -> list[list[int]]:
    """For the model before each event and after the last, where its blocks are in the last one, by their order."""
    last = blocks_of(history.shapes)
    shapes = [history.initial.shapes, *(event.shapes for event in history.events)]
    found = []
    for index, own in enumerate(shapes):
        paths = blocks_of(own)
        for before, event in zip(shapes[index:], history.events[index:], strict=False):
            number = len(paths)
            paths = blocks_with(paths, before, new_blocks(event.blocks, "a growth event"))[:number]
        found.append([last.index(path) for path in paths])
    return found


def width_text(first: int, last: int) -> str:
    """`+10 of 64`: ten neurons of a layer with 64 at the start; `new, 64` of one that was not there."""
    if not first:
        return f"new, {last}"
    return f"+{last - first} of {first}" if last > first else str(last)


def neuron_counts(model: GrowablePreTrainedModel) -> dict[str, int]:
    """Number of neurons of every linear that is no branch, by its path in the encoder."""
    return {site.root: site.module.neurons for site in model.growable_linears() if not site.nested}


def series(log: Sequence[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    """Steps and values of a metric in a log."""
    return [(int(entry["step"]), float(entry[key])) for entry in log if key in entry and "step" in entry]


def last_step(log: Sequence[Mapping[str, float]]) -> int:
    """The step at which a training ended; 0 where its log does not tell."""
    return max((int(entry["step"]) for entry in log if "step" in entry), default=0)


def seconds_at(log: Sequence[Mapping[str, float]], *, grew: bool) -> dict[int, float]:
    """
    Seconds of a training at the steps of its log; empty where it does not tell.

    Args:
        log (`Sequence[Mapping]`): The `log_history` of the training.
        grew (`bool`): Whether the model grew. If not, all steps take equally long, so that the duration is enough.
    """
    clock = {int(entry["step"]): entry[CLOCK] for entry in log if CLOCK in entry and "step" in entry}
    if clock or grew:
        return clock
    total = next((entry["train_runtime"] for entry in reversed(log) if "train_runtime" in entry), None)
    end = last_step(log)
    if total is None or not end:
        return {}
    return {step: total * step / end for step in {int(entry["step"]) for entry in log if "step" in entry}}


def reached(found: list[State], values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Parameters and the last value of a metric at each size of a model: before the next event, and at the end."""
    last: dict[int, float] = {}
    for step, value in values:
        last[parameters_at(found, step)] = value
    return sorted(last.items())


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
        blocks = blocks_of(event.shapes)
        return [_growth(record, blocks) for record in event.layers]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The growth history is damaged: a record of a linear cannot be read ({error!r}).") from error


def forecast(event: GrowthEvent) -> str:
    """The decrease of the loss that was predicted, and of what; empty where nothing was."""
    if event.forecast is None:
        return ""
    return number(event.predicted_gain) + ("" if event.forecast == "event" else f" ({event.forecast})")


def linears(history: GrowthHistory) -> list[str]:
    """Names in their layers of the linears that have hidden neurons or units, or that grew."""
    roots = [root for shapes in (history.shapes, history.initial.shapes) for root in shapes.skip_sizes]
    names = [Place.parse(root).linear for root in (*roots, *history.initial.shapes.widths)]
    grown = (growth for event in history.events for growth in growths(event))
    return list(dict.fromkeys((*names, *(growth.linear for growth in grown if not growth.of_heads))))


def blocks_of(shapes: Shapes) -> list[str]:
    """Paths of the layers, in the order of the forward pass."""
    return list(dict.fromkeys(Place.parse(root).block for root in shapes.widths))


def _state(step: int, parameters: int, macs: int, shapes: Shapes, places: list[int], number: int) -> State:
    where = dict(zip(blocks_of(shapes), places, strict=True))
    widths, branches = [0] * number, [dict[str, list[int]]() for _ in range(number)]
    for root, width in shapes.widths.items():
        widths[where[Place.parse(root).block]] += width
    for root, sizes in shapes.skip_sizes.items():
        place = Place.parse(root)
        branches[where[place.block]][place.linear] = list(sizes)
    return State(step, parameters, macs, tuple(widths), tuple(branches), (0,) * number)


def _growth(record: dict[str, Any], blocks: list[str]) -> Growth:
    place = Place.parse(record["linear"])
    if record["operator"] not in (*OPERATORS, *HEAD_OPERATORS):
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
