"""What an optimizer must know of a model for both to grow; else the remedy is named."""

from collections.abc import Collection

from torch import nn
from torch.optim import Optimizer

from ...growth.optimizer.state import held_parameters
from ...growth.optimizer_rules import inner_optimizer
from ...growth.surgery.attachments import check_attachments
from ...models.modeling_saddle import GrowablePreTrainedModel


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """
    Verify that an optimizer trains a model, and can follow its growth.

    Raises:
        ValueError: If its state cannot be carried, or if it misses a parameter: it was made for other parameters, and
            those would stay at rest unnoticed.
    """
    inner_optimizer(optimizer)
    held = set(held_parameters(optimizer))
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

    Raises:
        ValueError: If something hangs on a parameter that cannot follow (see [`check_attachments`]), or the optimizer
            does not hold one that requires a gradient.
    """
    check_attachments(model, paths)
    held = set(held_parameters(optimizer))
    for path in paths:
        for name, parameter in model.get_submodule(path).named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in held:
                raise ValueError(
                    f"The optimizer does not hold {path}.{name}, which requires a gradient and may grow. Freeze the "
                    "linear (`requires_grad_(False)`), name others in `linears` and `layers` of the GrowthConfig, or "
                    "give the optimizer this parameter too."
                )
