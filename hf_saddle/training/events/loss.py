"""The loss of a training as the probe measures it: what its `Trainer` logs for the same samples."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from ...curvature.loss import Loss
from ...curvature.ranks import Ranks
from ...curvature.samples import sample_count


@contextmanager
def metrics_aside(trainer: Trainer | None) -> Iterator[None]:
    """
    Leave the metrics alone that a trainer collects in `compute_loss` and clears in `log`, as those of TRL do: what the
    probe adds is no evaluation, and an entry of growth does not take those of the step.
    """
    known = {} if trainer is None else vars(trainer)
    kept = copy.deepcopy(known.get("_metrics"))
    try:
        yield
    finally:
        if kept is not None:
            known["_metrics"] = kept


def training_loss(trainer: Trainer, batches: Sequence[Any], ranks: Ranks) -> Loss:
    """
    The loss by which a `Trainer` trains, for a set of probe batches. All processes have to call this.

    It is `compute_loss` of the trainer under its context managers, for any subclass, `compute_loss_func`, label
    smoothing and mixed precision. A batch is measured as a step of which every micro-batch, on every process, is this
    batch: the gradient accumulation has the effect that it has on the logged loss. The step's number of items
    (`num_items_in_batch`) is as `Trainer` counts it on all probe batches together, in proportion to the samples of the
    batch, so that the mean over all samples is a mean over all items.

    Args:
        trainer (`Trainer`): The trainer.
        batches (`Sequence`): The probe batches of this process, as the trainer prepares them.
        ranks ([`Ranks`]): The processes that train the model.

    Returns:
        `Callable`: Maps the model and one of the batches to its loss, a scalar tensor.
    """
    args = trainer.args
    _, items = trainer.get_batch_samples(iter(batches), len(batches), args.device)
    samples = sum(map(sample_count, batches))
    together = args.world_size if args.average_tokens_across_devices else 1
    if together > 1:
        samples = sum(ranks.gather(samples))
    accumulation = args.gradient_accumulation_steps
    # Where the loss is a mean, `Trainer` divides it by the number of micro-batches; the sum over them is that of one.
    scaled = _is_scaled(trainer, items is not None)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        share = sample_count(batch) * accumulation * together
        count = None if items is None else items * share / samples
        with trainer.compute_loss_context_manager():
            # A copy, because `compute_loss` may take the labels out of it.
            value: Tensor = trainer.compute_loss(model, copy.copy(batch), num_items_in_batch=count)
        return value * accumulation if scaled else value

    return loss


def _is_scaled(trainer: Trainer, counted: bool) -> bool:
    """Whether `Trainer.training_step` takes a loss as a part of the accumulated batch's, and not as a mean."""
    # What a subclass declares; transformers 5.18 does not know it yet.
    declared = getattr(trainer, "loss_is_scaled_for_ga", None)
    if declared is not None:
        return bool(declared)
    return (trainer.model_accepts_loss_kwargs and counted) or trainer.compute_loss_func is not None
