"""A grown parameter that is not yet part of the model: its new value, and where every row and column comes from."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...models.parameters import whole


NEW = -1  # source of a row or column that no old one continues


@dataclass(frozen=True)
class Axis:
    """How the slices of a new tensor along one dimension continue those of the old one."""

    source: Tensor  # (size,) int64 on the CPU: index into the old tensor, or NEW
    share: Tensor  # (size,) float32 on the CPU: the gradient of the slice relative to that of its source
    scale: Tensor  # (size,) float32 on the CPU: what the values of its source were multiplied by

    @classmethod
    def unchanged(cls, size: int) -> "Axis":
        """Every slice continues itself."""
        return cls(torch.arange(size), torch.ones(size), torch.ones(size))


class ParameterDraft:
    """
    The new value of a parameter and, for every dimension, the [`Axis`] that tells where its slices come from.

    Nothing is copied until the first change. All values are built by `cat` and `index_select`, which are
    deterministic on every device. The value of a parameter that is spread over processes is gathered from all of them.
    """

    def __init__(self, value: Tensor, old: nn.Parameter | None = None):
        self.old = old
        self.value = whole(value)
        self.axes = [Axis.unchanged(size) for size in value.shape]
        self.touched = old is None

    def copy_(
        self, dim: int, indices: Tensor, *, scale: float = 1.0, share: float = 1.0, values: Tensor | None = None
    ) -> None:
        """
        Append a copy of each slice in `indices` (distinct, on the CPU) along `dim`.

        Originals and copies are multiplied by `scale`, or replaced by `values`, originals first; both see `share`
        times the gradient that the original saw.
        """
        size, count = self.value.shape[dim], len(indices)
        origin = torch.cat([torch.arange(size), indices])
        is_copy = torch.zeros(size + count, dtype=torch.bool)
        is_copy[indices] = True
        is_copy[size:] = True
        pool, order = self.value, origin
        if values is not None:
            pool = torch.cat([self.value, values.to(self.value)], dim)
            order = origin.clone()
            order[indices] = size + torch.arange(count)
            order[size:] = size + count + torch.arange(count)
        value = pool.index_select(dim, order.to(pool.device))
        if scale != 1.0:
            factor = torch.where(is_copy, scale, 1.0).to(value)
            value *= factor.view([-1 if axis == dim else 1 for axis in range(value.dim())])
        axis = self.axes[dim]
        self.value, self.touched = value, True
        shares, scales = (torch.where(is_copy, factor, 1.0) for factor in (share, scale))
        self.axes[dim] = Axis(axis.source[origin], axis.share[origin] * shares, axis.scale[origin] * scales)

    def append_(self, values: Tensor, dim: int = 0) -> None:
        """Append new slices along `dim`."""
        axis, count = self.axes[dim], values.shape[dim]
        self.value, self.touched = torch.cat([self.value, values.to(self.value)], dim), True
        new, one = torch.full((count,), NEW), torch.ones(count)
        self.axes[dim] = Axis(
            torch.cat([axis.source, new]), torch.cat([axis.share, one]), torch.cat([axis.scale, one])
        )

    def append_zeros_(self, count: int, dim: int) -> None:
        """Append new slices of 0 along `dim`."""
        size = list(self.value.shape)
        size[dim] = count
        self.append_(self.value.new_zeros(size), dim)

    def add_(self, indices: Tensor, values: Tensor, dim: int) -> None:
        """Add `values` to the slices in `indices` (on the CPU) along `dim`; they stay the same parameters."""
        size, where = self.value.shape[dim], indices.to(self.value.device)
        changed = self.value.index_select(dim, where) + values.to(self.value)
        order = torch.arange(size)
        order[indices] = size + torch.arange(len(indices))
        self.value = torch.cat([self.value, changed], dim).index_select(dim, order.to(self.value.device))
        self.touched = True

    def reorder_(self, order: Tensor, dim: int) -> None:
        """Put the slices along `dim` in another order: `order` (on the CPU) has where each comes from."""
        axis = self.axes[dim]
        self.value, self.touched = self.value.index_select(dim, order.to(self.value.device)), True
        self.axes[dim] = Axis(axis.source[order], axis.share[order], axis.scale[order])

    @classmethod
    def fresh(cls, value: Tensor) -> "ParameterDraft":
        """The draft of a parameter that continues no old one."""
        draft = cls(value)
        draft.axes = [Axis(torch.full_like(axis.source, NEW), axis.share, axis.scale) for axis in draft.axes]
        return draft


def like_format(value: Tensor, like: Tensor) -> Tensor:
    """A tensor in the memory format of another one, as far as that is contiguous or has its channels last."""
    last = (
        value.dim() == like.dim() == 4
        and not like.is_contiguous()
        and like.is_contiguous(memory_format=torch.channels_last)
    )
    return value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
