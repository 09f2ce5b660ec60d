"""The stand-in for the Hub and processes that use it."""

from pathlib import Path

import numpy as np
import pytest
from hub_client import Client, import_saddle
from hub_server import HubServer


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="session")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_faults_left(request):
    """A fault that a test did not use up must not reach the next test."""
    yield
    if "hub" in request.fixturenames:
        request.getfixturevalue("hub").faults.clear()


@pytest.fixture(scope="session")
def client(hub, tmp_path_factory):
    """A user's process with hf_saddle installed."""
    process = Client(hub.endpoint, tmp_path_factory.mktemp("home"))
    process(import_saddle)
    yield process
    process.close()


@pytest.fixture(scope="session")
def stranger(hub, tmp_path_factory):
    """A user's process where hf_saddle cannot be imported."""
    process = Client(hub.endpoint, tmp_path_factory.mktemp("stranger"), without_saddle=True)
    yield process
    process.close()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "model"
