"""One growth event inside of a training by `Trainer`: its samples, its loss, its progress bar."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer, TrainerState, TrainingArguments

from ..curvature.loss import Loss
from ..curvature.samples import sample_count
from ..growth import GrowthConfig, GrowthEvent
from ..growth.records.timing_record import Timing
from ..models.modeling_saddle import GrowablePreTrainedModel
from .distributed import Replicas
from .events.event import growth_event_
from .events.loss import metrics_aside
from .events.probe import event_seed, private_randomness
from .events.timed import time_growth
from .reports import lr_ratio
from .sharding.sharded import growth_event_sharded_
from .sharding.trainer_sharded import shard_as
from .trainer_probe import training_probe


# A probe shorter than that shows no progress bar.
_BAR_DELAY_SECONDS = 5.0


def trainer_event_(
    args: TrainingArguments,
    state: TrainerState,
    model: GrowablePreTrainedModel,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    config: GrowthConfig,
    *,
    event: int,
    to_come: int,
    trainer: Trainer | None,
    loss: Loss | None,
    probe_dataset: Any,
    followers: Sequence[GrowablePreTrainedModel],
    timing: Timing | None,
) -> GrowthEvent:
    """
    [`growth_event_`] on samples that the training's sampler takes, by the training's loss. All processes have to call
    this.

    `trainer`, `loss`, `probe_dataset` and `followers` are what [`GrowthCallback`] was given, `timing` what it measured
    when the training began; `event` and `to_come` are those of [`growth_event_`].
    """
    wrapped: nn.Module = model if trainer is None else trainer.model_wrapped
    batches, loss = training_probe(model, loader, config, event, trainer, loss, probe_dataset)
    silent = args.disable_tqdm or not state.is_world_process_zero
    # Analysis of all samples, or of one half, scores, and a trial on the other half; and the loss afterwards.
    total = sum(map(sample_count, batches)) * (3 if config.judged else 2)
    progress = tqdm(total=total, desc="Growth", delay=_BAR_DELAY_SECONDS, leave=False, disable=silent)
    with metrics_aside(trainer), progress as bar:
        place: dict[str, Any] = {
            "event": event,
            "step": state.global_step,
            "epoch": state.epoch,
            "lr_ratio": lr_ratio(optimizer, args.learning_rate),
            "to_come": to_come,
            "loss": partial(_ticking, bar, loss),
        }
        if isinstance(wrapped, FSDPModule) and trainer is not None:
            shard = shard_as(trainer.accelerator)
            _, grown = growth_event_sharded_(wrapped, optimizer, batches, config, shard=shard, **place)
        else:
            grown = growth_event_(wrapped, optimizer, batches, config, followers=followers, timing=timing, **place)
    if args.torch_compile and trainer is None and (grown.layers or grown.blocks):
        torch.compiler.reset()  # as `growth_event_` does where it sees the wrapper
    return grown


def time_training(
    model: GrowablePreTrainedModel,
    loader: DataLoader[Any],
    config: GrowthConfig,
    trainer: Trainer | None,
    loss: Loss | None,
    probe_dataset: Any,
) -> Timing:
    """[`time_growth`] on samples of the training, by its loss. All processes have to call this."""
    replicas = Replicas.of(model if trainer is None else trainer.model_wrapped)
    batches, loss = training_probe(model, loader, config, 0, trainer, loss, probe_dataset)
    with metrics_aside(trainer), private_randomness(event_seed(config, 0)):
        return time_growth(model, batches[0], config, loss, replicas)


def _ticking(bar: tqdm, loss: Loss, model: nn.Module, batch: Any) -> Any:
    value = loss(model, batch)
    bar.update(min(sample_count(batch), bar.total - bar.n))  # a step may be tried more than once
    return value
