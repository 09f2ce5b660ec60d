"""What FSDP2 under a Trainer needs: checks, sharding as Accelerate does it, and shapes before shards are loaded."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.optim import Optimizer
from transformers import Trainer
from transformers.trainer_utils import has_length

from ...growth import GrowthConfig
from ...models.loading import fit_blocks_, resize_to_
from ...models.modeling_saddle import GrowablePreTrainedModel
from .sharded import check_batches, check_sharded


# The folder that Accelerate keeps the state of an optimizer in, where checkpoints are sharded.
SHARDED_OPTIMIZER = "optimizer_0"


def check_sharded_training(
    trainer: Trainer,
    model: GrowablePreTrainedModel,
    optimizer: Optimizer,
    config: GrowthConfig,
    followers: Sequence[GrowablePreTrainedModel],
    dataset: Any,
) -> None:
    """
    Verify that a model may grow in a training that FSDP shards.

    Raises:
        ValueError: If not; the message names what to change.
    """
    args, plugin = trainer.args, trainer.accelerator.state.fsdp_plugin
    refused = {
        "`cpu_offload` of the fsdp_config: leave it out": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "`torch_compile`: leave it out": args.torch_compile,
        "`load_best_model_at_end`, whose model may have other shapes: load the best checkpoint after the training": (
            args.load_best_model_at_end
        ),
        "`auto_find_batch_size`: choose the batch size": args.auto_find_batch_size,
        "`followers`, which are whole on every process: average checkpoints after the training": bool(followers),
    }
    for what, asked in refused.items():
        if asked:
            raise ValueError(f"A model that FSDP shards does not grow with {what}.")
    check_sharded(model, optimizer, config)
    drawn, ranks = config.probe_samples, args.world_size
    if has_length(dataset):
        drawn = min(drawn, len(dataset))
    ends = [rank * drawn // ranks for rank in range(ranks + 1)]
    check_batches([_sizes(last - first, config.probe_batch_size) for first, last in pairwise(ends)], config)


def _sizes(samples: int, size: int) -> list[int]:
    """What samples are divided into, in batches of a size."""
    return [min(size, samples - start) for start in range(0, samples, size)]


def shard_as(accelerator: Accelerator) -> Callable[[nn.Module], Any]:
    """What shards a model on the meta device as `accelerator.prepare` sharded it."""
    plugin = accelerator.state.fsdp_plugin

    def shard(model: nn.Module) -> None:
        # It is for the values of the first process, which the others wait for; here each has its shards.
        efficient, plugin.cpu_ram_efficient_loading = plugin.cpu_ram_efficient_loading, False
        try:
            fsdp2_prepare_model(accelerator, model)
        finally:
            plugin.cpu_ram_efficient_loading = efficient

    return shard


def before_sharding_(trainer: Trainer, folder: str | None) -> None:
    """
    Give the model of a training the shapes of the checkpoint that it resumes from, whose values are loaded once it is
    sharded.

    Args:
        trainer (`Trainer`): The trainer.
        folder (`str`, *optional*): The checkpoint.

    Raises:
        ValueError: If a model could not grow, sharded by FSDP1, or could not be sharded by Accelerate; the model is
            sharded already and has other shapes; or the checkpoint belongs to another model.
    """
    model: Any = trainer.model
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError("Models do not grow under FSDP1. Use FSDP2: `fsdp_config={'version': 2}`.")
    if plugin.activation_checkpointing:
        raise ValueError(
            "`activation_checkpointing` of the fsdp_config puts wrappers in the place of blocks, which cannot grow "
            "then. Use that of the TrainingArguments."
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "Accelerate's `cpu_ram_efficient_loading` cannot shard models with buffers that are saved, which branches "
            "have. Set it to False."
        )
    if folder is None or not isinstance(model, GrowablePreTrainedModel):
        return
    config = type(model.config).from_pretrained(folder)
    with torch.device("meta"):
        twin = type(model)(config)
    others = twin.shapes() != model.shapes()
    if isinstance(model, FSDPModule):
        if others:
            raise ValueError(
                f"The model is sharded already, in other shapes than those of {folder}. Make the model and the "
                "Trainer anew to resume from it."
            )
        return
    # What is checked are shapes and the neurons that units feed; those are loaded with the weights.
    shapes = {
        name: value if value.is_floating_point() else torch.zeros_like(value, device="cpu")
        for name, value in twin.state_dict().items()
    }
    fit_blocks_(model, config)
    resize_to_(model, shapes, "")
    model.config.skip_unit = config.skip_unit


def save_shapes(model: GrowablePreTrainedModel, folder: str) -> None:
    """Write config and growth history into a checkpoint, where Trainer writes neither beside sharded weights."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.save_growth_history(folder)
