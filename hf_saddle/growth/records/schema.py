"""What a growth history may say: types, ranges, and events each of which leads from one shape to the next."""

from collections.abc import Mapping, Sequence
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
