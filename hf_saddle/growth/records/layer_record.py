"""What a history keeps of the growth of one layer, and whether what one says can be."""

from typing import Any

from ...models.shapes import Shapes
from ...models.sites import Place
from ..operators import OPERATORS
from .fields import COUNT, NUMBER, TEXT, Check, check_fields, each, must
from .layer_growth import LayerGrowth


_EIGENVALUE: dict[str, Check] = {"min": NUMBER, "mean": NUMBER, "max": NUMBER}
_RECORD: dict[str, Check] = {
    "linear": TEXT,
    "operator": must(f"text, one of {', '.join(OPERATORS)}", lambda value: value in list(OPERATORS)),
    "candidates": COUNT,
    "chosen": COUNT,
    "neurons": each(COUNT),
    "eigenvalue": lambda value, name: check_fields(value, _EIGENVALUE, name),
    "predicted_gain": NUMBER,
}


def layer_record(growth: LayerGrowth) -> dict[str, Any]:
    """The record of a growth, fit for JSON."""
    values = growth.eigenvalues
    return {
        "linear": growth.linear,
        "operator": growth.operator,
        "candidates": growth.candidates,
        "chosen": len(growth.neurons),
        "neurons": list(growth.neurons),
        "eigenvalue": {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())},
        "predicted_gain": float(growth.predicted_gain.sum()),
    }


def check_record(record: Any, where: str, shapes: Shapes) -> None:
    """Raise a `ValueError` if a record is not what an event writes that leads to some shapes."""
    check_fields(record, _RECORD, where)
    try:
        block = Place.parse(record["linear"]).block
        known = any(root.startswith(f"{block}.") for root in shapes.widths)
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"`{where}.linear` names no growable linear: {record['linear']!r}.")
    number = len(set(record["neurons"]))
    if not number or not record["chosen"] == number == len(record["neurons"]):
        raise ValueError(f"`{where}.chosen` is {record['chosen']}, but `neurons` has {number}.")
    if record["candidates"] < number:
        raise ValueError(f"`{where}.candidates` is {record['candidates']}, but {number} were chosen.")
    least, mean, most = (record["eigenvalue"][name] for name in _EIGENVALUE)
    slack = 1e-6 * max(abs(least), abs(most))  # the mean of equal numbers is rounded
    if not least - slack <= mean <= most + slack:
        raise ValueError(
            f"`{where}.eigenvalue` must rise from `min` over `mean` to `max`, got {record['eigenvalue']}."
        )
