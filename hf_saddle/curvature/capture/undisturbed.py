"""What measuring leaves as it was: the modes of modules, and the random generators of Python, NumPy and torch."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


def note_random_state(gpus: Iterable[torch.device]) -> Callable[[], None]:
    """Note the random states of Python, NumPy and torch, on some GPUs too; what is returned puts them back."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = {gpu: torch.cuda.get_rng_state(gpu) for gpu in gpus}

    def go_back() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for gpu, state in on_gpus.items():
            torch.cuda.set_rng_state(state, gpu)

    return go_back


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and gradients on for a while; then modes and all random generators are as before."""
    modes = {module: module.training for module in model.modules()}
    gpus = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    go_back = note_random_state(gpus)
    try:
        model.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        go_back()
