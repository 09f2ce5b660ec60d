"""What the fields of a config may be, how others are refused, and how they are explained."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, TypeVar, cast

from ..models.config_fields import is_number


Config = TypeVar("Config")


def explained(config_class: type[Config]) -> type[Config]:
    """Let `HfArgumentParser` show what the docstring of a dataclass says of its fields."""
    known = {item.name: item for item in fields(cast(Any, config_class))}
    entries = re.findall(
        r"^    (\w+) \(.*\):\n((?:        .*\n)+)", inspect.cleandoc(config_class.__doc__ or ""), re.MULTILINE
    )
    for name, text in entries:
        known[name].metadata = MappingProxyType({**known[name].metadata, "help": " ".join(text.split())})
    return config_class


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
