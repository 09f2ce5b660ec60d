"""Which samples a training draws, read from a copy of its sampler that leaves the training's own alone."""

import copy
import random
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler, SkipBatchSampler
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler
from transformers.trainer_utils import has_length

from ..growth import GrowthConfig
from .events.probe import event_seed, private_randomness


def makes_batches(loader: Any) -> bool:
    """Whether a loader of training data collates samples, so that others can be collated like them."""
    return isinstance(loader, DataLoader) and loader.batch_sampler is not None


def training_indices(loader: DataLoader[Any], config: GrowthConfig, *, event: int = 0) -> list[Any] | None:
    """
    The samples that an epoch of a training takes, as often as it takes them; for `indices` of [`probe_batches`].

    A copy of the loader's sampler, or batch sampler, is read, and all random generators in it are seeded for the
    event: the training goes on as if nothing had been drawn, and a resumed one draws the same. Of a sampler without
    length the first `config.probe_samples` are read.

    Args:
        loader (`DataLoader`): The loader of the training data, with or without Accelerate's wrapper.
        config ([`GrowthConfig`]): Number of samples and seed.
        event (`int`, *optional*, defaults to 0): Index of the event, from 0.

    Returns:
        `list` or `None`: Indices of the data set; `None` if it takes all samples equally often, or is a stream.

    Raises:
        ValueError: If the sampler cannot be copied.
    """
    if isinstance(loader.dataset, IterableDataset):
        return None
    batch_sampler: Any = loader.batch_sampler
    while isinstance(batch_sampler, (BatchSamplerShard, SkipBatchSampler)):
        batch_sampler = batch_sampler.batch_sampler
    seed = event_seed(config, event)
    if type(batch_sampler) is not BatchSampler:
        batches = _epoch(batch_sampler, loader.dataset, config.probe_samples, seed)
        return list(chain.from_iterable(batches))
    if _takes_all(batch_sampler.sampler, loader.dataset):
        return None
    return _epoch(batch_sampler.sampler, loader.dataset, config.probe_samples, seed)


def _takes_all(sampler: Any, dataset: Any) -> bool:
    known = type(sampler) in (RandomSampler, SeedableRandomSampler)
    return known and not sampler.replacement and sampler.num_samples == len(dataset)


def _epoch(sampler: Iterable[Any], dataset: Any, count: int, seed: int) -> list[Any]:
    """What a sampler yields in an epoch, or the first `count` if there is no end."""
    memo: dict[int, Any] = {id(dataset): dataset}  # the data are not copied
    try:
        twin = copy.deepcopy(sampler, memo)
    except Exception as error:  # whatever the parts of a sampler raise
        raise ValueError(
            f"The sampler of the training data ({type(sampler).__name__}) cannot be copied ({error}), and reading it "
            "would take samples from the training. Pass `probe_dataset` to `GrowthCallback`: some training samples, "
            "drawn as the training draws them."
        ) from error
    for part in list(memo.values()):
        _reseed_(part, seed)
    with private_randomness(seed):
        return list(islice(twin, len(twin) if has_length(twin) else count))  # type: ignore[arg-type]


def _reseed_(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seed % 2**32)
