"""The loss of a probe batch: the model's own by default, and what it must be to be differentiated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from .capture.padding import IGNORED
from .ranks import Ranks
from .samples import sample_count


# Maps model and batch to the mean loss over the samples of the batch.
Loss = Callable[[nn.Module, Any], Tensor]


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a transformers model computes from labels in the batch."""
    loss: Tensor = model(**batch).loss
    return loss


def terms_per_sample(model: nn.Module, batches: Sequence[Any], ranks: Ranks) -> float:
    """How many predictions the loss of a sample is the mean of: labelled tokens, where tokens are predicted, or 1."""
    labels, samples = _totals(model, batches, ranks)
    return max(1.0, labels / samples)


def own_loss_of(model: nn.Module, batches: Sequence[Any], ranks: Ranks) -> Loss:
    """
    The loss that a transformers model computes from labels, such that its mean over the samples of all batches is what
    one batch of all samples would give.

    A model that predicts tokens takes the mean over those of a batch that have a label. Batches with more of them
    count for more here: a batch's loss is multiplied by its tokens per sample, relative to those of all batches.
    """
    labels, samples = _totals(model, batches, ranks)
    if labels == 0:
        return own_loss

    def loss(model: nn.Module, batch: Any) -> Tensor:
        count = _label_count(model, batch)
        if count is None:
            return own_loss(model, batch)
        if count == 0:
            raise ValueError("A probe batch has no label that counts (all are -100). Leave such batches out.")
        share = count * samples / (labels * sample_count(batch))
        return own_loss(model, batch) * share

    return loss


def _totals(model: nn.Module, batches: Sequence[Any], ranks: Ranks) -> tuple[int, int]:
    """Labels that count and samples, on all ranks."""
    counts = [_label_count(model, batch) or 0 for batch in batches]
    parts: list[tuple[int, int]] = ranks.gather((sum(counts), sum(map(sample_count, batches))))
    return sum(labels for labels, _ in parts), sum(samples for _, samples in parts)


def _label_count(model: nn.Module, batch: Any) -> int | None:
    """Number of labels that a batch's loss is a mean over; `None` if that is the number of its samples."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point():
        return None
    # Adapters and `torch.compile` wrap it.
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is not None and not inner.config.is_encoder_decoder:
        reduction = getattr(inner.config, "ctc_loss_reduction", None)
        if reduction == "sum":
            raise ValueError(
                "`ctc_loss_reduction` is 'sum', and the analysis needs the mean over samples. Set "
                "`model.config.ctc_loss_reduction = 'mean'`."
            )
        if reduction is not None:
            return None
        if batch.get("shift_labels") is not None:
            labels = batch["shift_labels"]
        elif inner.loss_function is ForCausalLMLoss:
            labels = labels[:, 1:]  # the first token is not predicted
    return int((labels != IGNORED).sum())


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
