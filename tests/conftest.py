"""
Tests run offline, quietly and on one thread, with an empty home folder, and read nothing that a bare machine lacks;
what transformers calls deprecated is a failure.
"""

import atexit
import gc
import logging
import os
import re
import shutil
import tempfile
from collections import Counter

import read_guard


# Read when huggingface_hub, datasets and torch are imported. A process that has a stand-in for the Hub sets its own.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have the environment of the process that starts them
    _home = tempfile.mkdtemp(prefix="hf_saddle-home-")
    atexit.register(shutil.rmtree, _home, ignore_errors=True)
    _folders = {"HF_HOME": "huggingface", "MPLCONFIGDIR": "matplotlib", "XDG_CACHE_HOME": "cache"}
    os.environ.update({"HOME": _home} | {name: os.path.join(_home, folder) for name, folder in _folders.items()})
read_guard.start()
for _variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from hf_saddle import (  # noqa: E402
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleViTConfig,
    SaddleViTForImageClassification,
)


torch.set_num_threads(1)

# Accelerate collects garbage after every training, and looking through what was imported would take longer than most
# trainings of the tests.
gc.collect()
gc.freeze()

_DEPRECATION = re.compile(r"deprecat|(will be|is) removed in|removed in (a future|v?\d)", re.IGNORECASE)


class _Deprecations(logging.Handler):
    """Keeps the deprecation messages; upstream logs many of them instead of issuing a warning."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if _DEPRECATION.search(message):
            self.messages.append(message)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.basetemp is not None:
        read_guard.allow(config.option.basetemp)
    for origin in ("transformers", "huggingface_hub", "accelerate", "datasets"):
        for category in ("FutureWarning", "DeprecationWarning"):
            config.addinivalue_line("filterwarnings", f"error::{category}:{origin}")
    # PEFT reads the old name of this attribute of transformers.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is `thinned(n)` every n-th case always runs; the others are slow."""
    cases: Counter[str] = Counter()
    for item in items:
        thinned = item.get_closest_marker("thinned")
        if thinned is not None:
            test = item.nodeid.split("[")[0]
            if cases[test] % thinned.args[0]:
                item.add_marker(pytest.mark.slow)
            cases[test] += 1


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    read_guard.stop()  # reports may be written anywhere


@pytest.fixture(autouse=True)
def reads():
    """Fail a test that tried to read what a bare machine lacks, even if the error was caught."""
    yield read_guard.reads
    found = sorted(set(read_guard.reads))
    read_guard.reads.clear()
    assert not found, f"outside of the repository and its environment: {found}"


@pytest.fixture(autouse=True)
def deprecations():
    """Fail a test during which transformers logged a deprecation; `deprecations.clear()` lets one pass."""
    transformers_logging.warning_once.cache_clear()
    handler, logger = _Deprecations(), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield handler.messages
    logger.removeHandler(handler)
    assert not handler.messages, f"transformers logged a deprecation: {handler.messages}"


@pytest.fixture
def tiny_shape() -> dict[str, int]:
    """Config fields of the models that transformers' own ViT tests use."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "image_size": 30,
        "patch_size": 2,
    }


@pytest.fixture
def deit(tiny_shape) -> SaddleDeiTForImageClassification:
    """A tiny growable DeiT in eval mode, with random weights."""
    torch.manual_seed(0)
    return SaddleDeiTForImageClassification(SaddleDeiTConfig(**tiny_shape, num_labels=3)).eval()


@pytest.fixture
def vit(tiny_shape) -> SaddleViTForImageClassification:
    """A tiny growable plain ViT in eval mode, with random weights."""
    torch.manual_seed(0)
    return SaddleViTForImageClassification(SaddleViTConfig(**tiny_shape, num_labels=3)).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    """Two images for the tiny models."""
    return torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(0))
