"""What the JSON of a growth plan may hold."""

from collections.abc import Callable
from typing import Any

from ...models.config_fields import is_number
from ..values import is_int


# What a predicted gain is of: the event itself, or, where units stay at rest, the half natural step that would follow.
FORECASTS = ("event", "next step")
VECTORS = ("steps", "gains", "predicted_gain", "eigenvalues")


def check_fields(values: Any, known: dict[str, Callable[[Any], bool]], where: str) -> None:
    """Raise a `ValueError` that names a field that is missing, unknown, or of another type."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, got {str(values)[:50]!r}.")
    for name in (*sorted(known.keys() - values.keys()), *sorted(values.keys() - known.keys())):
        raise ValueError(f"`{name}` of {where} is {'missing' if name in known else 'unknown'}: it is damaged.")
    for name, fits in known.items():
        if not fits(values[name]):
            raise ValueError(f"`{name}` of {where} cannot be {str(values[name])[:50]!r}: it is damaged.")


def _is_count(value: Any) -> bool:
    return is_int(value) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


PLAN_FIELDS: dict[str, Callable[[Any], bool]] = {
    "growths": lambda value: isinstance(value, list),
    "criterion": lambda value: value is None or _is_text(value),
    "budget": lambda value: value is None or is_number(value),
    "parameters": _is_count,
    "macs": _is_count,
    "seed": is_int,
    "candidates": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    "held_back": lambda value: value is None or _is_text(value),
    "forecast": lambda value: value in (None, *FORECASTS),
    "predicted_error": lambda value: value is None or (is_number(value) and value >= 0),
    "blocks": lambda value: isinstance(value, list),
    "freeze": lambda value: isinstance(value, bool),
    "timing": lambda value: value is None or isinstance(value, dict),
}
# What plans of earlier schemas do not have.
LATER_FIELDS: dict[str, Any] = {
    "candidates": {},
    "held_back": None,
    "forecast": None,
    "predicted_error": None,
    "blocks": [],
    "freeze": False,
    "timing": None,
}
GROWTH_FIELDS: dict[str, Callable[[Any], bool]] = {
    "linear": _is_text,
    "operator": _is_text,
    "neurons": lambda value: _is_list(value, _is_count),
    "directions": _is_text,
    "directions_sha256": _is_text,
    "candidates": _is_count,
    **{name: lambda value: _is_list(value, is_number) for name in VECTORS},
}
