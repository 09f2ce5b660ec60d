"""The loss of the probe set."""

from collections.abc import Iterable
from typing import Any

import torch

from ...curvature.loss import Loss, own_loss
from ...curvature.samples import sample_count
from ...models.modeling_saddle import GrowablePreTrainedModel


@torch.no_grad()
def probe_loss(model: GrowablePreTrainedModel, batches: Iterable[Any], loss: Loss | None = None) -> float:
    """
    Mean loss over the samples of all batches, in evaluation mode; the model's mode is restored.

    Raises:
        ValueError: If there is no sample.
    """
    loss = loss or own_loss
    training, total, samples = model.training, 0.0, 0
    model.eval()
    try:
        for batch in batches:
            count = sample_count(batch)
            total, samples = total + float(loss(model, batch)) * count, samples + count
    finally:
        model.train(training)
    if not samples:
        raise ValueError("The probe set is empty: none of its batches holds a sample.")
    return total / samples
