"""Text that others wrote (labels, names, histories), made harmless for Markdown, HTML and code of a card."""

import html
import re
from typing import Any


# What starts a construct of Markdown within a line, and links that are recognised without any markup.
_SPECIAL = re.compile(r"([\\`*_\[\]|~$@]|:(?=//))")
_LIMIT = 200


def plain(value: Any, limit: int = _LIMIT) -> str:
    """One line without control characters, of at most `limit` characters."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def markdown(value: Any, limit: int = _LIMIT) -> str:
    """`plain` text as inline Markdown that renders as itself: no markup, no HTML, no table cell, no link."""
    escaped = _SPECIAL.sub(r"\\\1", plain(value, limit))
    return html.escape(escaped, quote=False).replace("www.", "www&#46;")


def number(value: Any, digits: int = 3) -> str:
    """
    A number with `digits` significant digits.

    Raises:
        ValueError: If it is something else than a number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{plain(value)!r} stands where a card needs a number.")
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def quantity(value: float, digits: int = 3) -> str:
    """A number in units that are read at a glance: 11.1 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"
