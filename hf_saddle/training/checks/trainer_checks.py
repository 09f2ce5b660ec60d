"""What a Trainer must be like for its model to grow; anything else is refused with the remedy."""

import logging
from typing import Any

from accelerate.utils import DistributedType
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.training_args import ParallelMode

from ...curvature.loss import Loss
from ...growth import GrowthConfig
from ..distributed import SUPPORTED, processes
from ..events.probe import copied_collator, open_stream
from ..sampling import makes_batches, training_indices
from ..trainer_probe import collator_of


logger = logging.getLogger(__name__)


def check_supported(args: TrainingArguments, trainer: Trainer | None) -> None:
    """
    Verify that a model may grow under the way of training that the arguments ask for.

    Raises:
        ValueError: If it may not; the message tells what to do.
    """
    kind = args.distributed_state.distributed_type
    own = trainer is not None and type(trainer)._prepare_for_training is not Trainer._prepare_for_training
    sharded = kind == DistributedType.FSDP and own  # a plain Trainer cannot resume across growth
    if args.deepspeed is not None or not (kind in SUPPORTED or sharded):
        raise ValueError(
            f"Models do not grow under {DistributedType.DEEPSPEED if args.deepspeed is not None else kind} in a "
            "Trainer. Use DDP (`torchrun` without `deepspeed` and `fsdp` options), or, where the model must be "
            "sharded, a GrowthTrainer with FSDP2 (`fsdp=True`), or a loop with `growth_event_sharded_`."
        )
    plain = trainer is None or type(trainer)._inner_training_loop is Trainer._inner_training_loop
    if args.auto_find_batch_size and plain:
        raise ValueError(
            "With `auto_find_batch_size`, a plain Trainer starts again from the model that has grown when the memory "
            "ran out. Use GrowthTrainer, which goes back to the start; it takes the same arguments."
        )
    if processes() > 1 and args.parallel_mode == ParallelMode.NOT_PARALLEL:
        raise ValueError(
            f"{processes()} processes were started, but each would train a model of its own, as Accelerate found no "
            "GPUs for them. Set `use_cpu=True` in the TrainingArguments (`--use_cpu`): they train one on CPUs then."
        )
    if args.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
        raise ValueError(
            "Models do not grow under `nn.DataParallel`. Start one process per GPU with `torchrun --nproc_per_node`, "
            "and use GrowthTrainer; or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    if args.parallel_mode != ParallelMode.NOT_PARALLEL and trainer is None:
        raise ValueError(
            "A callback of a plain Trainer cannot reach the DDP wrapper, without which the processes would drift "
            "apart. Use GrowthTrainer instead of Trainer, which takes the same arguments; or pass `trainer` to "
            "GrowthCallback."
        )


def check_training(
    args: TrainingArguments,
    state: TrainerState,
    loader: Any,
    *,
    config: GrowthConfig,
    trainer: Trainer | None,
    loss: Loss | None,
    probe_dataset: Any,
) -> None:
    """
    Verify that a model may grow in a training, whose loss, samples and epochs its callback knows; warn of what it
    cannot log.

    Raises:
        ValueError: If it may not, or they are not known; the message tells what to do.
    """
    check_supported(args, trainer)
    _check_loss(trainer, state, loss)
    if config.unit == "epochs" and not has_length(loader):
        raise ValueError(
            "A training data set without length has no epochs to count. Use `unit='steps'` in the GrowthConfig."
        )
    if trainer is None and args.report_to:
        logger.warning(
            f"{', '.join(args.report_to)} will not see the growth metrics, because a plain Trainer lets no "
            "callback log. Use GrowthTrainer, or give the callback the `trainer`."
        )
    _check_data(loader, trainer, probe_dataset, config)


def _check_loss(trainer: Trainer | None, state: TrainerState, loss: Loss | None) -> None:
    """Raise a `ValueError` unless the loss of a training is known to its callback."""
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


def _check_data(loader: Any, trainer: Trainer | None, probe_dataset: Any, config: GrowthConfig) -> None:
    """Raise a `ValueError` unless samples can be drawn as a training draws them, without taking any from it."""
    if not makes_batches(loader) and (trainer is None or probe_dataset is None):
        raise ValueError(
            f"The training data come from a {type(loader).__name__} that makes no batches of samples. Pass "
            "`probe_dataset` to GrowthCallback, some training samples, which `data_collator` of the trainer collates; "
            "in a plain Trainer with `trainer=trainer`."
        )
    copied_collator(collator_of(loader, trainer), getattr(loader, "dataset", None))
    if probe_dataset is None:
        training_indices(loader, config)
        if isinstance(loader.dataset, IterableDataset):
            open_stream(loader.dataset)
