"""Templates of HTML in which nobody's text is markup: everything that is filled in is escaped, and one line."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from .escape import plain


def _one_line(value: Any) -> Any:
    return value if isinstance(value, Markup) else plain(value, 1000)


PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, finalize=_one_line)
