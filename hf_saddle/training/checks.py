"""What a Trainer must be like for its model to grow; anything else is refused with the remedy."""

from collections.abc import Collection

from accelerate.utils import DistributedType
from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from ..growth.attachments import check_attachments
from ..growth.optimizer_state import inner_optimizer
from ..models.modeling_saddle import GrowablePreTrainedModel


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
        reaches_wrapper (`bool`): Whether the trainer is a [`GrowthTrainer`].

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
            "apart. Use GrowthTrainer instead of Trainer; it takes the same arguments."
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
