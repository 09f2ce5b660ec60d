"""The probe batches of a training by `Trainer`: samples that its sampler takes, as it would feed them to its loss."""

from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from ..growth import GrowthConfig
from .distributed import Replicas
from .events.probe import event_seed, private_randomness, probe_batches
from .sampling import makes_batches, training_indices


def trainer_batches(
    loader: DataLoader[Any],
    config: GrowthConfig,
    *,
    event: int,
    dataset: Any,
    trainer: Trainer | None,
    replicas: Replicas,
    device: torch.device,
) -> list[Any]:
    """
    The probe batches of this process. All processes have to call this.

    `dataset` is what is drawn from instead of the training data; `trainer`, where it is known, prepares the batches,
    and collates what the loader does not.
    """
    indices = None
    if dataset is None:
        dataset = loader.dataset
        read = partial(training_indices, loader, config, event=event)
        # Of the first process: a sampler may know its rank.
        indices = replicas.from_first(replicas.together("Reading the sampler", read))
    collate_fn = loader.collate_fn if trainer is None or makes_batches(loader) else trainer.data_collator

    def draw() -> list[Any]:
        batches = probe_batches(
            dataset,
            config,
            event=event,
            indices=indices,
            collate_fn=collate_fn,
            device=device,
            rank=replicas.rank,
            world_size=replicas.size,
        )
        if trainer is None:
            return batches
        with private_randomness(event_seed(config, event) + replicas.rank):
            return [trainer._prepare_inputs(batch) for batch in batches]

    return replicas.together("Drawing the probe samples", draw)
