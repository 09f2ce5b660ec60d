"""The halves of a probe: samples that choose what grows, and samples that judge it and that nothing is fitted to."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...curvature.ranks import Ranks
from ...curvature.samples import MINIMUM_SAMPLES, sample_count


def halves(batches: Sequence[Any], ranks: Ranks | None = None) -> tuple[list[Any], list[Any]]:
    """
    Divide probe batches by every other sample of all ranks together.

    Args:
        batches (`Sequence`): The probe batches of this rank. Tensors, and lists inside of a mapping, that have an
            entry for every sample of their batch are divided; anything else goes to both halves as it is.
        ranks ([`Ranks`], *optional*): Processes that share the probe.

    Returns:
        `tuple[list, list]`: Batches of the samples that choose, and of those that judge.

    Raises:
        ValueError: If there are fewer than eight samples on all ranks.
    """
    ranks = ranks or Ranks()
    sizes = [sample_count(batch) for batch in batches]
    counts = ranks.gather(sum(sizes))
    before, total = sum(counts[: ranks.rank]), sum(counts)
    if total < 2 * MINIMUM_SAMPLES:
        raise ValueError(
            f"The probe has {total} samples. One half chooses what grows and the other judges it, which needs at "
            f"least {2 * MINIMUM_SAMPLES}, better some hundred: pass more or larger `batches`."
        )
    parts: tuple[list[Any], list[Any]] = ([], [])
    for batch, count in zip(batches, sizes, strict=True):
        odd = (torch.arange(count) + before) % 2
        before += count
        for half, part in enumerate(parts):
            rows = (odd == half).nonzero()[:, 0]
            if len(rows):
                part.append(batch if len(rows) == count else take(batch, rows, count))
    return parts


def take(batch: Any, rows: Tensor, count: int) -> Any:
    """Some of the samples of a batch of `count` samples."""
    if isinstance(batch, Tensor):
        return batch.index_select(0, rows.to(batch.device)) if batch.dim() and len(batch) == count else batch
    if isinstance(batch, Mapping):
        return {name: _entry(value, rows, count) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)([take(member, rows, count) for member in batch])
    return batch


def _entry(value: Any, rows: Tensor, count: int) -> Any:
    """Some of the samples of an entry of a mapping, which may be a list of one object for each sample."""
    if isinstance(value, (list, tuple)) and len(value) == count:
        batched = [isinstance(member, Tensor) and bool(member.dim()) and len(member) == count for member in value]
        if not all(batched):
            return type(value)([value[row] for row in rows.tolist()])
    return take(value, rows, count)
