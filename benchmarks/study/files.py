"""What a run is, where finished ones are kept (a line of JSON each, a file an experiment), and weights in packages."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


Run = tuple[str, int, Callable[[], dict[str, Any]]]  # arm, seed, what carries it out
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


def package_folder(distribution: str) -> Path:
    """
    The folder of a package of the extra `study`; it is not imported, as it asks for more than the weights in it.

    Raises:
        ImportError: If it is not installed.
    """
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ImportError(f"The study needs {distribution}: `pip install -e '.[study]'`.")
    return Path(spec.origin).parent
