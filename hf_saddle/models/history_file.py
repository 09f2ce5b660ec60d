"""The file of a model's growth history, beside its weights."""

import os
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from .checkpoint_checks import check_regular
from .json_files import read_json, write_json


HISTORY_NAME = "growth_history.json"


def write_history(history: dict[str, Any] | None, folder: str | os.PathLike[str]) -> None:
    """Write a growth history into a folder; without one, a history that is there is removed."""
    path = Path(folder) / HISTORY_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    if history is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, history)


def read_history(path: str | os.PathLike[str], source: dict[str, Any]) -> dict[str, Any] | None:
    """The growth history in a folder or repo, or `None`; `source` are arguments such as `revision`."""
    if os.path.isdir(path):
        check_regular(Path(path, source.get("subfolder") or "", HISTORY_NAME), "The growth history")
    file = cached_file(path, HISTORY_NAME, _raise_exceptions_for_missing_entries=False, **source)
    return None if file is None else read_json(file, "The growth history")
