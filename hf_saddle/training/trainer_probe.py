"""The probe of a training by `Trainer`: samples that its sampler takes, as it would feed them to its loss."""

from functools import partial
from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer

from ..curvature.loss import Loss
from ..growth import GrowthConfig
from ..models.modeling_saddle import GrowablePreTrainedModel
from .distributed import Replicas
from .events.loss import training_loss
from .events.probe import event_seed, private_randomness, probe_batches
from .sampling import makes_batches, training_indices


def collator_of(loader: Any, trainer: Trainer | None) -> Any:
    """What makes batches of samples in a training."""
    return loader.collate_fn if trainer is None or makes_batches(loader) else trainer.data_collator


def training_probe(
    model: GrowablePreTrainedModel,
    loader: DataLoader[Any],
    config: GrowthConfig,
    event: int,
    trainer: Trainer | None,
    loss: Loss | None = None,
    dataset: Any = None,
) -> tuple[list[Any], Loss]:
    """
    The probe batches of an event, of this process, and the loss of the training. All processes have to call this.

    `dataset` is what is drawn from instead of the training data; `trainer`, where it is known, prepares the batches,
    and collates what the loader does not.
    """
    replicas = Replicas.of(model if trainer is None else trainer.model_wrapped)
    indices = None
    if dataset is None:
        dataset = loader.dataset
        read = partial(training_indices, loader, config, event=event)
        # Of the first process: a sampler may know its rank.
        indices = replicas.from_first(replicas.together("Reading the sampler", read))
    elif trainer is not None and isinstance(dataset, Dataset):
        dataset = trainer._remove_unused_columns(dataset, description="probe")  # as `Trainer` does with its own
    collate_fn = collator_of(loader, trainer)

    def draw() -> list[Any]:
        batches = probe_batches(
            dataset,
            config,
            event=event,
            indices=indices,
            collate_fn=collate_fn,
            device=model.device,
            rank=replicas.rank,
            world_size=replicas.size,
        )
        if trainer is None:
            return batches
        with private_randomness(event_seed(config, event) + replicas.rank):
            return [trainer._prepare_inputs(batch) for batch in batches]

    batches = replicas.together("Drawing the probe samples", draw)
    if loss is None and trainer is not None:
        loss = training_loss(trainer, batches, replicas)
    assert loss is not None  # `check_training`
    return batches, loss
