"""Probe batches that leave the training alone: an own loader, own random numbers, and the training's put back."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, IterableDataset, default_collate

from ...curvature.capture.undisturbed import note_random_state
from ...growth import GrowthConfig


def event_seed(config: GrowthConfig, event: int) -> int:
    """Seed of all that is drawn at random in an event; events differ, ranks and resumed runs do not."""
    return (config.growth_seed + 0x9E3779B97F4A7C15 * event) % 2**63


@contextmanager
def private_randomness(seed: int) -> Iterator[None]:
    """Seed the random generators of Python, NumPy and torch for a while; then all of them are as before."""
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = [torch.device("cuda", torch.cuda.current_device())] if in_use else []
    go_back = note_random_state(gpus)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        for _ in gpus:
            torch.cuda.manual_seed(seed)
        yield
    finally:
        go_back()


def probe_batches(
    dataset: Any,
    config: GrowthConfig,
    *,
    event: int = 0,
    indices: Sequence[Any] | None = None,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> list[Any]:
    """
    Draw the samples that an event is decided on, `config.probe_samples` on all ranks together.

    Global random generators are used from a seed of the event and put back, and the collator is copied, so that the
    training goes on as if nothing had been drawn. A map-style data set that keeps a random generator of its own has to
    be given as a copy. An iterable data set is copied, and its first samples are taken.

    Args:
        dataset (`Dataset` or `IterableDataset`): The training data.
        config ([`GrowthConfig`]): Number of samples, batch size and seed.
        event (`int`, *optional*, defaults to 0): Index of the event, from 0. Each draws other samples.
        indices (`Sequence`, *optional*): What is drawn from, the same on all ranks; by default every sample once. For
            a training with a sampler of its own see [`training_indices`].
        collate_fn (`Callable`, *optional*): Makes a batch of a list of samples.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the batches go.
        rank (`int`, *optional*, defaults to 0): Index of this process.
        world_size (`int`, *optional*, defaults to 1): Number of processes; each draws its share of the same samples.

    Returns:
        `list`: Batches of at most `config.probe_batch_size` samples.

    Raises:
        ValueError: If there are fewer samples than ranks, or the data set is a stream that cannot be copied.
    """
    seed = event_seed(config, event)
    with private_randomness(seed + rank):
        if isinstance(dataset, (IterableDataset, IterableDatasetShard)):
            source: Any = list(islice(open_stream(dataset), config.probe_samples))
            drawn: list[Any] = list(range(len(source)))
        else:
            source = dataset
            pool = range(len(dataset)) if indices is None else indices
            order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
            drawn = [pool[place] for place in order[: config.probe_samples].tolist()]
        if len(drawn) < world_size:  # all ranks see it, so that none waits for another
            raise ValueError(
                f"The training data set has {len(drawn)} samples for the probe, fewer than the {world_size} "
                "processes: each needs one. Give more data, or a larger `probe_samples`."
            )
        # Neighbours stay together: one process with all samples has them in the order of ranks.
        drawn = drawn[rank * len(drawn) // world_size : (rank + 1) * len(drawn) // world_size]
        own = copied_collator(collate_fn, dataset)
        loader = DataLoader(source, batch_size=config.probe_batch_size, sampler=drawn, collate_fn=own)
        return [send_to_device(batch, device) for batch in loader]


def copied_collator(collate_fn: Any, dataset: Any) -> Any:
    """
    A copy of what collates, which draws random numbers of its own; where that belongs to the data set, not of this.

    Raises:
        ValueError: If it cannot be copied.
    """
    try:
        return copy.deepcopy(collate_fn, {id(dataset): dataset})
    except TypeError as error:
        raise ValueError(
            f"What collates the training data cannot be copied ({error}), and the probe must not change its state. "
            "Make it a function, or an object without open files, connections and locks."
        ) from error


def open_stream(dataset: Any) -> Iterator[Any]:
    """
    The samples of an iterable data set from the start, read from a copy.

    Raises:
        ValueError: If the data set cannot be copied.
    """
    if isinstance(dataset, IterableDatasetShard):
        dataset = dataset.dataset  # all ranks read the same samples, of which each then takes its share
    try:
        return iter(copy.deepcopy(dataset))
    except TypeError as error:
        raise ValueError(
            f"The training data is a stream that cannot be copied ({error}), and reading it would take samples from "
            "the training. Pass `probe_dataset` to `GrowthCallback`: some training samples in a data set of their own."
        ) from error
