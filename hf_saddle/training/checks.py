"""What a Trainer must be like for its model to grow; anything else is refused with the remedy."""

import logging
from collections.abc import Collection
from typing import Any

from accelerate.utils import DistributedType
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from ..growth import GrowthConfig
from ..growth.attachments import check_attachments
from ..growth.optimizer_state import inner_optimizer
from ..models.modeling_saddle import GrowablePreTrainedModel
from .probe import Loss, open_stream
from .sampling import makes_batches, training_indices


logger = logging.getLogger(__name__)


# A single process, or DDP.
SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
)


def check_supported(args: TrainingArguments, reaches_wrapper: bool) -> None:
    """
    Verify that a model may grow under the way of training that the arguments ask for.

    Args:
        args (`TrainingArguments`): The arguments.
        reaches_wrapper (`bool`): Whether the trainer is known.

    Raises:
        ValueError: If it may not; the message tells what to do.
    """
    kind = args.distributed_state.distributed_type
    if args.deepspeed is not None or kind not in SUPPORTED:
        raise ValueError(
            f"Models do not grow under {DistributedType.DEEPSPEED if args.deepspeed is not None else kind} in a "
            "Trainer. Use DDP (`torchrun` without `deepspeed` and `fsdp` options), or, where the model must be "
            "sharded, a loop with FSDP2 and `growth_event_sharded_`."
        )
    if args.auto_find_batch_size and not reaches_wrapper:
        raise ValueError(
            "With `auto_find_batch_size`, a plain Trainer starts again from the model that has grown when the memory "
            "ran out. Use GrowthTrainer, which goes back to the start; it takes the same arguments."
        )
    if args.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
        raise ValueError(
            "Models do not grow under `nn.DataParallel`. Start one process per GPU with `torchrun --nproc_per_node`, "
            "and use GrowthTrainer; or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    if args.parallel_mode != ParallelMode.NOT_PARALLEL and not reaches_wrapper:
        raise ValueError(
            "A callback of a plain Trainer cannot reach the DDP wrapper, without which the processes would drift "
            "apart. Use GrowthTrainer instead of Trainer, which takes the same arguments; or pass `trainer` to "
            "GrowthCallback."
        )


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """
    Verify that an optimizer trains a model, and can follow its growth.

    Raises:
        ValueError: If its state cannot be carried, or if it misses a parameter: it was made for other parameters, and
            those would stay at rest unnoticed.
    """
    inner_optimizer(optimizer)
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    missed = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter not in held
    ]
    present = set(model.parameters())
    if missed and not held <= present:
        raise ValueError(
            f"The optimizer was made for other parameters and does not train {len(missed)} of the model's, such as "
            f"{missed[0]}. The model has changed its shapes since (a checkpoint or the best model was loaded). In a "
            "loop of your own call `rebind_` right after that, or make the optimizer anew. With a Trainer set "
            "`trainer.optimizer = trainer.lr_scheduler = None` before `train()`, or use GrowthTrainer, which does it."
        )


def check_parameters(model: GrowablePreTrainedModel, paths: Collection[str], optimizer: Optimizer) -> None:
    """
    Verify that linears may exchange their parameters, and that an optimizer trains what is to be trained of them.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        paths (`Collection[str]`): The linears that may grow.
        optimizer (`Optimizer`): The optimizer that trains it.

    Raises:
        ValueError: If something hangs on a parameter that cannot follow (see [`check_attachments`]), or the optimizer
            does not hold one that requires a gradient.
    """
    check_attachments(model, paths)
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for path in paths:
        for name, parameter in model.get_submodule(path).named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in held:
                raise ValueError(
                    f"The optimizer does not hold {path}.{name}, which requires a gradient and may grow. Freeze the "
                    "linear (`requires_grad_(False)`), name others in `linears` and `layers` of the GrowthConfig, or "
                    "give the optimizer this parameter too."
                )


def check_loss(trainer: Trainer | None, state: TrainerState, loss: Loss | None) -> None:
    """
    Verify that the loss of a training is known to its callback.

    Args:
        trainer (`Trainer`, *optional*): The trainer that the callback knows.
        state (`TrainerState`): The state of the training.
        loss (`Callable`, *optional*): The loss that the user gave.

    Raises:
        ValueError: If it is not; the message tells what to do.
    """
    if trainer is not None and trainer.state is not state:
        raise ValueError(
            "The GrowthCallback belongs to another trainer than the one that trains. Make one with "
            "`GrowthCallback(config, trainer=trainer)` for each, or use GrowthTrainer."
        )
    if trainer is None and loss is None:
        raise ValueError(
            "A plain Trainer does not tell its callbacks the loss that it trains by (`compute_loss`, "
            "`compute_loss_func`, label smoothing). Use GrowthTrainer, which takes the same arguments; or "
            "`trainer.add_callback(GrowthCallback(config, trainer=trainer))`, which does not survive "
            "`restore_callback_states_from_checkpoint`; or pass `loss`: `lambda model, batch: model(**batch).loss` is "
            "the model's own."
        )
    if trainer is not None and loss is None and type(trainer).training_step is not Trainer.training_step:
        logger.warning(
            f"{type(trainer).__name__} overrides `training_step`. Growth is decided by `compute_loss`; if another "
            "loss is trained there, or on other inputs, pass `loss` to GrowthCallback."
        )


def check_data(loader: Any, trainer: Trainer | None, probe_dataset: Any, config: GrowthConfig) -> None:
    """
    Verify that samples can be drawn as a training draws them, without taking any from it.

    Args:
        loader (`DataLoader`): The loader of the training data.
        trainer (`Trainer`, *optional*): The trainer.
        probe_dataset (`Dataset`, *optional*): The samples that the user gave.
        config ([`GrowthConfig`]): Number of samples and seed.

    Raises:
        ValueError: If they cannot; the message tells what to do.
    """
    if not makes_batches(loader) and (trainer is None or probe_dataset is None):
        raise ValueError(
            f"The training data come from a {type(loader).__name__} that makes no batches of samples. Pass "
            "`probe_dataset` to GrowthCallback, some training samples, which `data_collator` of the trainer collates; "
            "in a plain Trainer with `trainer=trainer`."
        )
    if probe_dataset is None:
        training_indices(loader, config)
        if isinstance(loader.dataset, IterableDataset):
            open_stream(loader.dataset)
