"""A growth history as cards and pictures need it: the sizes of the model in order, and what each event did where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..growth import GrowthEvent, GrowthHistory
from ..growth.operators import OPERATORS, SCALED
from ..growth.records.block_records import blocks_with
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.shapes import Shapes
from ..models.sites import Place
from .escape import number


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
        return not OPERATORS[self.operator].deepens

    @property
    def of_heads(self) -> bool:
        """Whether heads of an attention module grew."""
        return OPERATORS[self.operator].of == "heads"


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
    last = blocks_of(history.size.shapes)
    shapes = [history.initial.shapes, *(event.shapes for event in history.events)]
    found = []
    for index, own in enumerate(shapes):
        paths = blocks_of(own)
        for before, event in zip(shapes[index:], history.events[index:], strict=False):
            number = len(paths)
            paths = blocks_with(paths, before, event.new_blocks)[:number]
        found.append([last.index(path) for path in paths])
    return found


@dataclass(frozen=True)
class Row:
    """
    What every layer has gained of one kind of thing, as tables and heat maps show it.

    Attributes:
        name (`str`): What was added to: "hidden neurons", "attention heads", or the name of a linear in its layer.
        kind (`str`): `"width"` or `"depth"`.
        values (`tuple[int, ...]`): How many each layer has gained.
        texts (`tuple[str, ...]`): The same in words.
        most (`int`): The largest value of all that is compared by colour.
    """

    name: str
    kind: str
    values: tuple[int, ...]
    texts: tuple[str, ...]
    most: int

    def shares(self) -> list[float]:
        """The values as shares of the largest."""
        return [value / max(self.most, 1) for value in self.values]


def gains(history: GrowthHistory, neurons: Mapping[str, int]) -> list[Row]:
    """
    What every layer has gained since the start, first in width, then in depth; `neurons` of every linear, see
    [`neuron_counts`].
    """
    first, *_, last = [*states(history)] * 2
    added = tuple(end - start for start, end in zip(first.widths, last.widths, strict=True))
    rows = [Row("hidden neurons", "width", added, tuple(map(_width_text, first.widths, last.widths)), max(added))]
    if any(last.heads):
        told = tuple(f"+{number}" if number else "" for number in last.heads)
        rows.append(Row("attention heads", "width", last.heads, told, max(last.heads)))
    blocks, names = blocks_of(history.size.shapes), linears(history)
    layers = range(len(blocks))
    units = {name: tuple(last.units(layer, name) for layer in layers) for name in names}
    most = max((number for row in units.values() for number in row), default=0)
    for name in names:
        sizes = [last.branches[layer].get(name, []) for layer in layers]
        counts = [neurons.get(f"{block}.{name}") for block in blocks]
        rows.append(Row(name, "depth", units[name], tuple(map(_units_text, sizes, counts)), most))
    return rows


def _width_text(first: int, last: int) -> str:
    """`+10 of 64`: ten neurons of a layer with 64 at the start; `new, 64` of one that was not there."""
    if not first:
        return f"new, {last}"
    return f"+{last - first} of {first}" if last > first else str(last)


def _units_text(sizes: Sequence[int], neurons: int | None) -> str:
    """`+10 › 2 for 64`: ten units of a linear of 64 neurons, fed by two more; empty without units."""
    if not sizes:
        return ""
    return f"+{' › '.join(map(str, sizes))}" + ("" if neurons is None else f" for {neurons}")


def short_name(linear: str) -> str:
    """A name in a layer that fits beside a picture."""
    parts = linear.split(".")
    return ".".join(parts[-2:]) if parts[-1] in ("dense", "convolution") else parts[-1]


def neuron_counts(model: GrowablePreTrainedModel) -> dict[str, int]:
    """Number of neurons of every linear that is no branch, by its path in the encoder."""
    return {site.root: site.module.neurons for site in model.growable_linears() if not site.nested}


def growths(event: GrowthEvent) -> list[Growth]:
    """What an event grew, linear by linear."""
    blocks = blocks_of(event.shapes)
    return [_growth(record, blocks) for record in event.layers]


def forecast(event: GrowthEvent) -> str:
    """The decrease of the loss that was predicted, its standard error, and of what; empty where nothing was."""
    if event.forecast is None:
        return ""
    error = "" if event.predicted_error is None else f" ± {number(event.predicted_error, 2)}"
    return number(event.predicted_gain) + error + ("" if event.forecast == "event" else f" ({event.forecast})")


def losses_text(event: GrowthEvent) -> str:
    """The loss of the probe before and after an event; empty where neither was measured."""
    losses = (event.loss_before, event.loss_after)
    return "" if losses == (None, None) else " → ".join("?" if loss is None else number(loss, 4) for loss in losses)


def expected(event: GrowthEvent, growth: Growth) -> str:
    """What was predicted of one growth, and of what; what starts at rest does nothing at once."""
    if event.forecast is None:
        return ""
    rests = event.forecast == "event" and growth.operator not in SCALED
    return number(growth.predicted_gain) + (" (next step)" if rests else "")


def linears(history: GrowthHistory) -> list[str]:
    """Names in their layers of the linears that have hidden neurons or units, or that grew."""
    roots = [root for shapes in (history.size.shapes, history.initial.shapes) for root in shapes.skip_sizes]
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
    eigenvalue = record["eigenvalue"]
    return Growth(
        layer=blocks.index(place.block),
        linear=place.linear,
        nested=place.depth,
        operator=record["operator"],
        candidates=record["candidates"],
        chosen=record["chosen"],
        eigenvalues=(float(eigenvalue["min"]), float(eigenvalue["mean"]), float(eigenvalue["max"])),
        predicted_gain=float(record["predicted_gain"]),
    )
