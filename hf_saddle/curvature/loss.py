"""The loss of a probe batch: the model's own by default, and what it must be to be differentiated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


# Maps model and batch to the mean loss over the samples of the batch.
Loss = Callable[[nn.Module, Any], Tensor]


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a transformers model computes from labels in the batch."""
    loss: Tensor = model(**batch).loss
    return loss


def check_loss(loss: Any) -> Tensor:
    """
    Verify that a loss can be differentiated.

    Raises:
        ValueError: If it is not a scalar tensor, not finite, or depends on no layer that is watched.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(
            "The loss is not a scalar tensor. Pass `loss=lambda model, batch: ...` that returns the mean loss of a "
            "batch; for a transformers model the batch must contain the labels."
        )
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            f"The loss of a probe batch is {float(loss.detach())}. Check the batch and the model before growing it."
        )
    if not loss.requires_grad:
        raise ValueError(
            "The loss does not depend on any of the chosen linear layers, or was computed under `torch.no_grad`."
        )
    return loss
