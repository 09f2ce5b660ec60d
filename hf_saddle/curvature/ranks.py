"""Sums over ranks, such that several processes obtain what one process obtains on the union of their samples."""

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


Result = TypeVar("Result")


class Ranks:
    """
    The processes that share one analysis; a no-op for a single process.

    Args:
        distributed (`bool`): Whether to reduce over the ranks of `group`. All of them must then call the same methods
            in the same order.
        group (`torch.distributed.ProcessGroup`, *optional*): The group; `None` is the default group.
    """

    def __init__(self, distributed: bool = False, group: "dist.ProcessGroup | None" = None):
        if distributed and not (dist.is_available() and dist.is_initialized()):
            raise ValueError("`distributed=True` needs `torch.distributed.init_process_group` to be called before.")
        self.group = group
        self.size = dist.get_world_size(group) if distributed else 1
        self.rank = dist.get_rank(group) if distributed else 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over the ranks, any shape. The argument is overwritten."""
        if self.size > 1:
            value = value.contiguous()
            dist.all_reduce(value, group=self.group)
        return value

    def before_and_total(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of `value` over the lower ranks and over all ranks."""
        if self.size == 1:
            return torch.zeros_like(value), value
        gathered = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(gathered, value.contiguous(), group=self.group)
        stacked = torch.stack(gathered)
        return stacked[: self.rank].sum(0), stacked.sum(0)

    def total(self, count: int) -> int:
        """The sum of a number over the ranks."""
        return sum(self.gather(count))

    def concatenate(self, value: Tensor) -> Tensor:
        """The rows of all ranks' tensors, in the order of the ranks; their numbers may differ."""
        if self.size == 1:
            return value
        counts: list[int] = self.gather(len(value))
        padded = value.new_zeros(max(counts), *value.shape[1:])
        padded[: len(value)] = value
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    def gather(self, value: Result) -> list[Result]:
        """The values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def together(self, what: str, action: Callable[[], Result]) -> Result:
        """
        Do something on all ranks, or fail on all of them, so that none waits for another.

        Args:
            what (`str`): What is done, for the message.
            action (`Callable`): Does it, without communication.

        Raises:
            RuntimeError: If it failed on another rank. On the rank itself its own error is raised.
        """
        error: Exception | None = None
        try:
            result = action()
        except Exception as caught:
            error = caught
        failures = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise RuntimeError(f"{what} failed on rank {rank}, so no rank does it. {failure}")
        return result


def seed_of(seed: int, *parts: object) -> int:
    """A seed for one purpose, the same on every rank and in every process."""
    return zlib.crc32("/".join(map(str, (seed, *parts))).encode())
