"""JSON files: what others may have written is read strictly, so that it can be copied, compared and written again."""

import json
import math
import os
from pathlib import Path
from typing import Any


# No document of a model is nested deeper, or counts further; Python's own limits end in errors of many kinds.
MAX_DEPTH = 32
MAX_INTEGER = 2**63


def parse_json(text: str | bytes, name: str) -> dict[str, Any]:
    """
    The JSON object in a text, without numbers that JSON cannot write and without names that are there twice.

    Args:
        text (`str` or `bytes`): The document.
        name (`str`): How messages call it, as "The growth history runs/a/growth_history.json".

    Raises:
        ValueError: If it is not valid JSON, not an object, nested too deeply, has a number out of range, or a name
            twice in one object.
    """
    try:
        value = json.loads(
            text, parse_int=_integer, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError(f"{name} is nested more than {MAX_DEPTH} levels deep.") from None
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {type(value).__name__}.")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _children(item)]
    if level:
        raise ValueError(f"{name} is nested more than {MAX_DEPTH} levels deep.")
    return value


def read_json(file: str | os.PathLike[str], what: str = "") -> dict[str, Any]:
    """The JSON object in a file, see [`parse_json`]; messages name the file, after `what` it is."""
    return parse_json(Path(file).read_bytes(), f"{what} {file}".strip())


def write_json(file: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write a JSON object; the file is the old one or the new one, and never a part of it."""
    path = Path(file)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def _children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return values


def _integer(text: str) -> int:
    # Checked before it is converted, which takes time that is quadratic in the digits.
    if len(text) > 20 or not -MAX_INTEGER <= int(text) < MAX_INTEGER:
        raise ValueError(f"the integer {text[:20]}{'…' * (len(text) > 20)} has more than 64 bits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is not finite")
    return number
