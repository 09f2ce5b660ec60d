"""Where finished runs are kept: one line of JSON each, a file for every experiment."""

import json
from pathlib import Path
from typing import Any


RESULTS = Path(__file__).parent / "results"


def results(experiment: str) -> list[dict[str, Any]]:
    """The finished runs of an experiment."""
    file = RESULTS / f"{experiment}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def store(experiment: str, row: dict[str, Any]) -> None:
    """Add a finished run."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{experiment}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
