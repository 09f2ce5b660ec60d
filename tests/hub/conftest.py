"""The stand-in for the Hub, client processes, and small models that have grown in different ways."""

from pathlib import Path

import numpy as np
import pytest
import torch
from client import Client
from server import HubServer

from hf_saddle import (
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleViTConfig,
    SaddleViTForImageClassification,
)


SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "id2label": {0: "cat", 1: "dog", 2: "ship"},
    "label2id": {"cat": 0, "dog": 1, "ship": 2},
}
DEPTH = {1: {"skip_sizes": {"mlp.fc1": [6, 3], "attention.v_proj": [2]}}}
WIDTH = {0: {"intermediate_size": 48}}
MODELS = {
    "deit-ungrown": (SaddleDeiTConfig, SaddleDeiTForImageClassification, None),
    "deit-wider": (SaddleDeiTConfig, SaddleDeiTForImageClassification, WIDTH),
    "deit-deeper": (SaddleDeiTConfig, SaddleDeiTForImageClassification, DEPTH),
    "vit-ungrown": (SaddleViTConfig, SaddleViTForImageClassification, None),
    "vit-deeper-and-wider": (SaddleViTConfig, SaddleViTForImageClassification, WIDTH | DEPTH),
}


def build(name: str):
    """One of `MODELS` with random weights, none of them zero."""
    config_class, model_class, per_layer_config = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config_class(**SHAPE, per_layer_config=per_layer_config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Logits of two processes are equal to the last bit only if both use the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    process(_import_saddle)
    yield process
    process.close()


@pytest.fixture(scope="session")
def stranger(hub, tmp_path_factory):
    """A user's process where hf_saddle cannot be imported."""
    process = Client(hub.endpoint, tmp_path_factory.mktemp("stranger"), without_saddle=True)
    yield process
    process.close()


def _import_saddle() -> None:
    import hf_saddle  # noqa: F401


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "model"
