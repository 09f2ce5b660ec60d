"""Hugging Face's references in docstrings, such as "[`~hf_saddle.GrowthConfig`]", become links or plain code."""

import re
from pathlib import Path
from typing import Any

import griffe


REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")
PAGES = Path(__file__).with_name("api")
_ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
DOCUMENTED = {name for page in PAGES.glob("*.md") for name in _ENTRY.findall(page.read_text())}


class References(griffe.Extension):
    """Links to what this reference documents; other names stay code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = REFERENCE.sub(self.link, obj.docstring.value)

    def link(self, match: re.Match[str]) -> str:
        name = match[1].split(".")[-1]
        targets = [path for path in DOCUMENTED if path.split(".")[-1] == name]
        return f"[`{name}`][{targets[0]}]" if targets else f"`{name}`"
