"""The benchmarks fit the library: each can be imported, and the parts of an event that one times are there."""

import importlib
import sys
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "__init__")


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """As a script finds them, and as a module."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS.parent), str(BENCHMARKS), *sys.path])


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_the_parts_of_an_event_that_are_timed_are_there():
    with importlib.import_module("benchmarks.training_overhead").timed_parts() as seconds:
        assert set(seconds.values()) == {0.0}
