"""Checkpoints of a hand-written Accelerate loop: `save_state` and `load_state` of a model that grows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import MODEL_NAME, SAFE_MODEL_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.utils import CONFIG_NAME

from ...growth import GrowthHistory
from ...growth.optimizer.rebind import same_parameters
from ...models.history_file import HISTORY_NAME
from ...models.loading import fit_blocks_
from ..checks.model_checks import check_growable
from ..distributed import SUPPORTED
from ..wrappers import find_ddp, unwrap
from .checkpoints import check_filled
from .rebind import rebind_
from .trainer_state import saved_history


def register_growth_checkpointing(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> None:
    """
    Let `accelerator.save_state` and `accelerator.load_state` work across growth. Call it once, after
    `accelerator.prepare`, on all processes.

    A checkpoint then has `config.json` and `growth_history.json` beside the weights, whose names are those of the
    unwrapped model: `from_pretrained` reads it, and so does a run with another number of processes. Before the states
    are loaded, the model takes the shapes of the checkpoint, whether it has fewer or more, and its history; optimizer
    and DDP wrapper follow. Everything else is Accelerate's own; register schedulers and counters by
    `accelerator.register_for_checkpointing`.

    Args:
        accelerator (`Accelerator`): The accelerator.
        model (`nn.Module`): The model that `accelerator.prepare` returned.
        optimizer (`AcceleratedOptimizer`): The optimizer that it returned.

    Raises:
        ValueError: If the model cannot grow, is not prepared by this accelerator, or is sharded. Later, by
            `load_state`, if a checkpoint was saved without this registration, or belongs to another model.

    Example:

    ```python
    >>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    >>> register_growth_checkpointing(accelerator, model, optimizer)
    >>> accelerator.load_state("checkpoints/last")
    ```"""
    inner = check_growable(model)
    kind = accelerator.distributed_type
    if kind not in SUPPORTED:
        raise ValueError(f"`register_growth_checkpointing` is for one process or DDP, got {kind}.")
    _place(accelerator._models, inner)
    if accelerator.num_processes > 1 and find_ddp(model) is None:
        raise ValueError("Pass the model that `accelerator.prepare` returned, in its DDP wrapper, not the one inside.")

    def save(models: list[nn.Module], weights: list[Mapping[str, Tensor]], folder: str) -> None:
        place = _place(models, inner)
        weights[place] = inner.state_dict()
        on_each_node = accelerator.project_configuration.save_on_each_node
        if accelerator.is_local_main_process if on_each_node else accelerator.is_main_process:
            inner.config.save_pretrained(_beside(folder, place))
            inner.save_growth_history(_beside(folder, place))

    def load(models: list[nn.Module], folder: str) -> None:
        place = _place(models, inner)
        history = _read_history(_beside(folder, place))
        config = type(inner.config).from_pretrained(_beside(folder, place))
        held = dict(inner.named_parameters())
        fit_blocks_(inner, config)
        check_filled(inner, inner.load_state_dict(_read_weights(folder, place), strict=False))
        inner.growth_history, inner.config.skip_unit = history, config.skip_unit
        known = GrowthHistory.from_model(inner)
        known.check(inner)
        if not same_parameters(inner, held):
            known.attach_(inner)  # of a model that never grew too, because it has other shapes now
            rebind_(model, optimizer, held)
            inner.growth_history = history
        models[place] = inner  # Accelerate loads the weights once more, by the names of the unwrapped model

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _place(models: Sequence[nn.Module], inner: nn.Module) -> int:
    """Index of a model among those that are prepared, which Accelerate numbers its files by."""
    for index, model in enumerate(models):
        if unwrap(model) is inner:
            return index
    raise ValueError("The model was not prepared by this accelerator: call `accelerator.prepare(model, …)` before.")


def _beside(folder: str, place: int) -> Path:
    return Path(folder, f"model_{place}") if place else Path(folder)


def _read_history(folder: Path) -> dict[str, Any] | None:
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(
            f"{folder} was saved without `register_growth_checkpointing`, so that the growth history of its model is "
            f"not known. Put the `{CONFIG_NAME}` and, if it has grown, the `{HISTORY_NAME}` that "
            "`model.save_pretrained` wrote for these weights into it."
        )
    return saved_history(folder)


def _read_weights(folder: str, place: int) -> Mapping[str, Tensor]:
    ending = f"_{place}" if place else ""
    path = Path(folder, f"{SAFE_MODEL_NAME}{ending}.safetensors")
    if path.is_file():
        return load_file(path)
    weights: Mapping[str, Tensor] = torch.load(
        Path(folder, f"{MODEL_NAME}{ending}.bin"), map_location="cpu", weights_only=True
    )
    return weights
