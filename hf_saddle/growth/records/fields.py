"""What fields of plans, histories and other records may hold: a check for each kind, which names what cannot be."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...models.config_fields import MAX_PARAMETERS, is_number
from ...models.growable import SKIP_UNITS
from ..values import is_int


# Raises a `ValueError` for a value that cannot be, under the name that messages call it by.
Check = Callable[[Any, str], None]


def must(told: str, fits: Callable[[Any], bool]) -> Check:
    """A value must be what is told."""

    def check(value: Any, name: str) -> None:
        if not fits(value):
            raise ValueError(f"`{name}` must be {told}, got {str(value)[:50]!r}.")

    return check


def one_of(names: Iterable[str]) -> Check:
    """One of some names."""
    known = list(names)
    return must(f"one of {', '.join(known)}", lambda value: value in known)


def up_to(high: int) -> Check:
    """A whole number that is not negative."""
    return must(f"a whole number in [0, {high}]", lambda value: is_int(value) and 0 <= value <= high)


def optional(own: Check) -> Check:
    """The same, or nothing."""
    return lambda value, name: None if value is None else own(value, name)


def each(own: Check) -> Check:
    """A list of such values."""

    def check(value: Any, name: str) -> None:
        LIST(value, name)
        for index, member in enumerate(value):
            own(member, f"{name}[{index}]")

    return check


def mapping(own: Check, keys: Check) -> Check:
    """Such values by name."""

    def check(value: Any, name: str) -> None:
        must("a mapping", lambda value: isinstance(value, Mapping))(value, name)
        for key, member in value.items():
            keys(key, name)
            own(member, f"{name}[{key}]")

    return check


def check_fields(values: Any, fields: Mapping[str, Check], name: str, inside: str | None = None) -> None:
    """
    Raise a `ValueError` that names what an object lacks, has too many, or has of another kind. Its fields are called
    `name.field` in messages, or as `inside` begins.
    """
    must("an object", lambda value: isinstance(value, Mapping))(values, name)
    lacks, unknown = (
        ", ".join(f"`{field}`" for field in sorted(some)) for some in (fields.keys() - values, values.keys() - fields)
    )
    if lacks or unknown:
        raise ValueError(
            f"`{name}` has the wrong fields: it lacks {lacks or 'none'} and has {unknown or 'none'} too many. It is "
            "damaged or of another version."
        )
    for field, check in fields.items():
        check(values[field], f"{name}.{field}" if inside is None else f"{inside}{field}")


def check_attributes(of: Any, fields: Mapping[str, Check]) -> None:
    """Raise a `ValueError` that names an attribute of another kind."""
    for name, check in fields.items():
        check(getattr(of, name), name)


ANY = must("anything", lambda value: True)  # checked as it is read
LIST = must("a list", lambda value: isinstance(value, list))
TEXT = must("text", lambda value: isinstance(value, str))
FLAG = must("True or False", lambda value: isinstance(value, bool))
NUMBER = must("a finite number", is_number)
AMOUNT = must("a finite number of at least 0", lambda value: is_number(value) and value >= 0)
# Of parameters twice what a config may ask for: that is a lower bound, without biases, norms and gains.
COUNT, MACS = up_to(2 * MAX_PARAMETERS), up_to(2**62)
UNIT = one_of(SKIP_UNITS)
