"""What the fields of a config may be: whole numbers, numbers and lists, and how they are refused."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..models.config_fields import is_number


def help_(text: str) -> Any:
    """Metadata of a field that `HfArgumentParser` shows."""
    return {"help": text}


def is_int(value: Any) -> bool:
    """Whether a value is a whole number; booleans are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    """Whether a value is a list that is not empty and has only members that fit."""
    return isinstance(value, list) and bool(value) and all(fits(item) for item in value)


def check_bounds(config: Any, bounds: Mapping[str, tuple[float, float, bool]]) -> None:
    """
    Verify fields of a config against their smallest and largest values, and whether they are whole numbers.

    Raises:
        ValueError: If one is something else; the message names it.
    """
    for name, (low, high, whole) in bounds.items():
        value = getattr(config, name)
        if not is_number(value) or (whole and not is_int(value)) or not low <= value <= high:
            kind = "an integer" if whole else "a number"
            limit = f"in [{low}, {high}]" if math.isfinite(high) else f"of at least {low}"
            raise ValueError(f"`{name}` must be {kind} {limit}, got {value!r}.")


def check_positive(config: Any, name: str) -> None:
    """
    Verify that a field of a config is a number above 0.

    Raises:
        ValueError: If it is something else.
    """
    value = getattr(config, name)
    if not is_number(value) or not value > 0:
        raise ValueError(f"`{name}` must be a number above 0, got {value!r}.")
