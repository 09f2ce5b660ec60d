"""The independent samples of a probe: how many there are, and their division into two folds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ranks import Ranks


MINIMUM_SAMPLES = 4


@dataclass(frozen=True)
class Samples:
    """
    The samples of a probe and their division into two folds.

    The division depends on the seed and on the position of a sample in the union of all ranks' samples, not on how
    they are spread over ranks and batches.
    """

    total: int  # on all ranks
    first: int  # on lower ranks
    local: int  # on this rank
    fold: Tensor  # (local,) int64, 0 or 1
    sign: Tensor  # (local,) ±1 at random, for the null model

    @classmethod
    def divide(cls, local: int, seed: int, ranks: Ranks, device: torch.device) -> "Samples":
        """
        Draw the folds.

        Raises:
            ValueError: If there are fewer than four samples: neither fold would have a standard error.
        """
        before, total = (int(count) for count in ranks.before_and_total(torch.tensor(local, device=device)))
        if total < MINIMUM_SAMPLES:
            raise ValueError(
                f"The probe has {total} sample(s). Directions are fitted on one half of the samples and judged on the "
                f"other, which needs at least {MINIMUM_SAMPLES}, better some hundred: pass more or larger `batches`."
            )
        generator = torch.Generator().manual_seed(seed)
        fold = torch.empty(total, dtype=torch.int64)
        fold[torch.randperm(total, generator=generator)] = torch.arange(total) % 2
        sign = torch.randint(0, 2, (total,), generator=generator) * 2 - 1
        own = slice(before, before + local)
        return cls(total, before, local, fold[own].to(device), sign[own].to(device))

    def gathered(self, ranks: Ranks) -> "Samples":
        """The samples of all ranks, as if this one had them all."""
        return Samples(self.total, 0, self.total, ranks.concatenate(self.fold), ranks.concatenate(self.sign))

    def size(self, fold: int) -> int:
        """Number of samples of a fold on all ranks."""
        return self.total - self.total // 2 if fold == 0 else self.total // 2


def sample_count(batch: Any) -> int:
    """
    Number of samples of a batch (dict, sequence or tensor, nested): the leading dimension of its first tensor that has
    one, or 0.
    """
    return _first_dimension(batch) or 0


def _first_dimension(batch: Any) -> int | None:
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else None
    members: Iterable[Any] = ()
    if isinstance(batch, Mapping):
        members = batch.values()
    elif isinstance(batch, (list, tuple)):
        members = batch
    return next((size for size in map(_first_dimension, members) if size is not None), None)


def collect(batches: Iterable[Any]) -> tuple[list[Any], list[int]]:
    """
    The probe batches and their numbers of samples.

    Raises:
        ValueError: If there is no batch, or one without samples.
    """
    collected = list(batches)
    if not collected:
        raise ValueError("The probe is empty: pass at least one batch (on every rank) to `batches`.")
    sizes = [sample_count(batch) for batch in collected]
    if 0 in sizes:
        raise ValueError(
            "A probe batch contains no tensor with a sample dimension, or has no samples: pass batches whose first "
            "tensor has shape (samples, ...)."
        )
    return collected, sizes
