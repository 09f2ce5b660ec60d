"""What a growth history may say: types, ranges, and events each of which leads from one shape to the next."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ...models.config_fields import MAX_PARAMETERS, is_number
from ...models.growable import SKIP_UNITS
from ...models.shapes import Shapes
from ...models.sites import Place
from ..operators import OPERATORS
from ..values import is_int
from .block_records import BLOCK_OPERATORS


# Twice what a config may ask for: that is a lower bound, without biases, norms and gains.
MAX_COUNT = 2 * MAX_PARAMETERS
MAX_MACS = 2**62
_RECORD = {"linear", "operator", "candidates", "chosen", "neurons", "eigenvalue", "predicted_gain"}


def check_fields(values: Any, known: set[str], where: str) -> None:
    """Raise a `ValueError` that names what is missing and what is unknown."""
    if not isinstance(values, Mapping):
        raise ValueError(f"`{where}` of a growth history must be an object, got {values!r}.")
    lacks, unknown = (", ".join(f"`{name}`" for name in names) for names in (known - set(values), set(values) - known))
    if lacks or unknown:
        raise ValueError(
            f"`{where}` of a growth history has the wrong fields: it lacks {lacks or 'none'} and has "
            f"{unknown or 'none'} too many. It is damaged or of another version."
        )


def check_count(value: Any, where: str, high: int = MAX_COUNT) -> None:
    """Raise a `ValueError` if a value is not a whole number in `[0, high]`."""
    if not is_int(value) or not 0 <= value <= high:
        raise ValueError(f"`{where}` of a growth history must be a whole number in [0, {high}], got {value!r}.")


def check_number(value: Any, where: str, low: float | None = None) -> None:
    """Raise a `ValueError` if a value is not a finite number, at least `low`."""
    if not is_number(value) or (low is not None and value < low):
        least = "" if low is None else f" of at least {low}"
        raise ValueError(f"`{where}` of a growth history must be a finite number{least}, got {value!r}.")


def check_text(value: Any, where: str) -> None:
    """Raise a `ValueError` if a value is not text."""
    if not isinstance(value, str):
        raise ValueError(f"`{where}` of a growth history must be text, got {value!r}.")


def check_kind(value: Any, where: str) -> None:
    """Raise a `ValueError` if a value is no kind of branch unit."""
    if value not in SKIP_UNITS:
        raise ValueError(f"`{where}` of a growth history must be one of {', '.join(SKIP_UNITS)}, got {value!r}.")


def check_versions(versions: Any, where: str) -> None:
    """Raise a `ValueError` if a value does not map names of packages to versions."""
    if not isinstance(versions, Mapping):
        raise ValueError(f"`{where}` of a growth history must map packages to versions, got {versions!r}.")
    for package, version in versions.items():
        check_text(package, f"{where}: {package!r}")
        check_text(version, f"{where}[{package}]")


def check_candidates(candidates: Any, where: str) -> None:
    """Raise a `ValueError` if a value does not map operators to numbers of neurons, heads or blocks."""
    known = {*OPERATORS, *BLOCK_OPERATORS}
    if not isinstance(candidates, Mapping) or not candidates.keys() <= known:
        raise ValueError(
            f"`{where}` of a growth history must map operators to numbers of neurons, got {candidates!r}."
        )
    for operator, count in candidates.items():
        check_count(count, f"{where}[{operator}]")


def check_records(records: Any, operators: Any, shapes: Shapes, others: Sequence[str] = ()) -> None:
    """
    Raise a `ValueError` if the records of the linears that grew are not what an event writes; `others` are operators
    that have no such records.
    """
    if not isinstance(records, list):
        raise ValueError(f"`layers` of a growth event must be a list of records, got {records!r}.")
    for index, record in enumerate(records):
        _check_record(record, f"layers[{index}]", shapes)
    if not isinstance(operators, list) or not all(isinstance(operator, str) for operator in operators):
        raise ValueError(f"`operators` of a growth event must be a list of names, got {operators!r}.")
    wanted = sorted({*others, *(record["operator"] for record in records)})
    if operators != wanted and (wanted or operators != ["merge_pairs"]):
        raise ValueError(f"`operators` of a growth event must be those of its layers, {wanted}, got {operators!r}.")


def _check_record(record: Any, where: str, shapes: Shapes) -> None:
    check_fields(record, _RECORD, where)
    check_text(record["linear"], f"{where}.linear")
    try:
        block = Place.parse(record["linear"]).block
        known = any(root.startswith(f"{block}.") for root in shapes.widths)
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"`{where}.linear` of a growth history names no growable linear: {record['linear']!r}.")
    check_text(record["operator"], f"{where}.operator")
    if record["operator"] not in OPERATORS:
        raise ValueError(f"`{where}.operator` of a growth history must be one of {', '.join(OPERATORS)}.")
    neurons = record["neurons"]
    if not isinstance(neurons, list) or not neurons:
        raise ValueError(f"`{where}.neurons` of a growth history must be a list of neurons, got {neurons!r}.")
    for neuron in neurons:
        check_count(neuron, f"{where}.neurons")
    for name in ("chosen", "candidates"):
        check_count(record[name], f"{where}.{name}")
    if record["chosen"] != len(neurons) or len(set(neurons)) < len(neurons):
        raise ValueError(
            f"`{where}.chosen` of a growth history is {record['chosen']}, but `neurons` has {len(set(neurons))}."
        )
    if record["candidates"] < len(neurons):
        raise ValueError(
            f"`{where}.candidates` of a growth history is {record['candidates']}, but {len(neurons)} were chosen."
        )
    eigenvalue = record["eigenvalue"]
    check_fields(eigenvalue, {"min", "mean", "max"}, f"{where}.eigenvalue")
    for name, value in eigenvalue.items():
        check_number(value, f"{where}.eigenvalue.{name}")
    slack = 1e-6 * max(abs(eigenvalue["min"]), abs(eigenvalue["max"]))  # the mean of equal numbers is rounded
    if not eigenvalue["min"] - slack <= eigenvalue["mean"] <= eigenvalue["max"] + slack:
        raise ValueError(
            f"`{where}.eigenvalue` of a growth history must rise from `min` over `mean` to `max`, got {eigenvalue}."
        )
    check_number(record["predicted_gain"], f"{where}.predicted_gain")


def check_shapes_follow(before: Shapes, records: list[dict[str, Any]], after: Shapes, where: str) -> None:
    """
    Raise a `ValueError` if the shapes after an event are not those before it with the neurons that its records name.

    A split neuron takes the units that feed it along, so that branches of a layer whose neurons were copied, or of
    another one in its block with rows of the same neurons, may gain more than the records name.
    """
    if before.widths.keys() != after.widths.keys():
        raise ValueError(f"The growth history is damaged: {where} has other layers than the model before it.")
    gained: dict[tuple[str, int], int] = {}
    copied: dict[str, int] = {}  # by root, the depth from which neurons were copied
    widened: set[str] = set()  # blocks whose hidden neurons were copied
    heads: dict[str, int] = {}
    for record in records:
        place, operator = Place.parse(record["linear"]), OPERATORS[record["operator"]]
        if operator.of == "heads":
            heads[place.root] = heads.get(place.root, 0) + record["chosen"]
            widened |= {place.block} if operator.copies else set()
            continue
        if not operator.deepens and not place.nested and place.root not in before.widths:
            raise ValueError(f"The growth history is damaged: {record['linear']} cannot be widened, as {where} says.")
        sizes = before.sizes(place.root)
        size = sizes[place.depth] if place.depth < len(sizes) else 0
        if (size or place.nested) and max(record["neurons"]) >= size:
            raise ValueError(
                f"The growth history is damaged: {where} names neuron {max(record['neurons'])} of {record['linear']}, "
                f"which had {size}."
            )
        key = (place.root, place.depth + operator.deepens)
        gained[key] = gained.get(key, 0) + operator.units * record["chosen"]
        if not operator.deepens:
            copied[place.root] = min(place.depth, copied.get(place.root, place.depth))
            widened |= set() if place.nested else {place.block}
    _check_heads_follow(before, heads, after, where)
    for root in dict.fromkeys((*before.widths, *before.skip_sizes, *after.skip_sizes)):
        sizes, sizes_after = before.sizes(root), after.sizes(root)
        shared = root not in before.widths and any(root.startswith(f"{block}.") for block in widened)
        for level, (size, size_after) in enumerate(zip_longest(sizes, sizes_after, fillvalue=0)):
            wanted = size + gained.pop((root, level), 0)
            more_is_fine = level > (0 if shared else copied.get(root, level))
            if size_after < size:
                raise ValueError(f"The growth history is damaged: {root} shrinks in {where}.")
            if size_after < wanted or (size_after > wanted and not more_is_fine):
                raise ValueError(
                    f"The growth history is damaged: {root} has {size_after} neurons after {where} (branch {level} of "
                    f"it), but its records lead from {size} to {wanted}. An event is missing, or was changed."
                )
    if gained:
        raise ValueError(f"The growth history is damaged: the shapes of {where} lack the branch {min(gained)}.")


def _check_heads_follow(before: Shapes, gained: dict[str, int], after: Shapes, where: str) -> None:
    """The same of attention heads, whose number shapes do not have where it is that of stock."""
    for root in {*before.heads, *gained, *after.heads}:
        was, more, now = before.heads.get(root), gained.get(root, 0), after.heads.get(root)
        if was is not None and now is not None:
            follows = now == was + more
        else:
            follows = more > 0 if now is None else more > 0 and now > more
        if not follows:
            raise ValueError(
                f"The growth history is damaged: {root} has {now or 'the heads of stock'} after {where}, but "
                f"{was or 'those of stock'} before it, and its records name {more} more."
            )
