"""What a training whose callback lets its model grow must be like, before its first step; else the remedy is named."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState, TrainingArguments

from ...curvature.loss import Loss
from ...growth import GrowthConfig
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..events.followers import check_followers
from ..sharding.trainer_sharded import check_sharded_training
from .model_checks import check_budget, check_growable, growable_paths
from .optimizer_checks import check_optimizer, check_parameters
from .trainer_checks import check_training


Training = tuple[TrainingArguments, TrainerState, GrowablePreTrainedModel, Optimizer, DataLoader[Any]]


def check_start(
    training: Training,
    config: GrowthConfig,
    *,
    trainer: Trainer | None,
    loss: Loss | None,
    probe_dataset: Any,
    followers: Sequence[GrowablePreTrainedModel],
) -> None:
    """
    Verify that a training, its model and its optimizer let the model grow as a config asks for.

    Args:
        training (`tuple`): Arguments, state, model, optimizer and loader of the training.
        config ([`GrowthConfig`]): When, where, how and how much to grow.
        trainer, loss, probe_dataset, followers: What the callback was given, see [`GrowthCallback`].

    Raises:
        ValueError: If not; the message tells what to do.
    """
    args, state, model, optimizer, loader = training
    check_training(args, state, loader, config=config, trainer=trainer, loss=loss, probe_dataset=probe_dataset)
    inner = check_growable(model, sharded=True)
    paths = growable_paths(inner, config)
    check_followers(inner, followers)
    if trainer is not None and trainer.is_fsdp_enabled:
        drawn_from = loader.dataset if probe_dataset is None else probe_dataset
        check_sharded_training(trainer, inner, optimizer, config, followers, drawn_from)
    check_optimizer(model, optimizer)
    check_parameters(inner, paths, optimizer)
    if state.global_step == 0:  # a resumed one may have spent its budget
        check_budget(inner, paths, config)
