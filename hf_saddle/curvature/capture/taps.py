"""How a tensor is watched: a tap on its gradient, and a memory of where it lies."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Tap(torch.autograd.Function):
    """
    The identity, which hands its gradient over.

    Its second argument is a scalar that requires a gradient. Asking autograd for that scalar's gradient makes it visit
    every tap, frozen layers included, without touching `.grad` and without keeping one gradient tensor per layer.
    Tensors are kept as autograd's saved tensors, so that non-reentrant checkpointing may drop and recompute them.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, anchor: Tensor, receive: Callable[..., None] | None, *saved: Tensor
    ) -> Tensor:
        ctx.save_for_backward(anchor, *saved)
        ctx.receive = receive
        # Not `view_as`: autograd forbids writing into such views, and a residual `z += x` may follow.
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        anchor, *saved = ctx.saved_tensors
        if ctx.receive is not None:
            with torch.autocast(gradients[0].device.type, enabled=False):
                ctx.receive(gradients[0].detach(), *saved)
        return gradients[0], torch.zeros_like(anchor), None, *[None] * len(saved)


def tap(value: Tensor, anchor: Tensor, receive: Callable[..., None] | None, *saved: Tensor) -> Tensor:
    """A tensor as it is, whose gradient goes to `receive` with the `saved` tensors; see [`Tap`]."""
    tapped: Tensor = Tap.apply(value, anchor, receive, *saved)  # type: ignore[no-untyped-call]
    return tapped


class Known:
    """Live tensors by the memory they occupy, so that a view of a known tensor is recognised."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int], tuple[weakref.ref[Tensor], Any]] = {}

    def add(self, tensor: Tensor, value: Any) -> None:
        self._entries[tensor.data_ptr(), tensor.numel()] = (weakref.ref(tensor), value)

    def get(self, tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return None
        alive, value = self._entries.get((tensor.data_ptr(), tensor.numel()), (lambda: None, None))
        return None if alive() is None else value
