"""Optimizer, history and wrappers follow a model that took other shapes while it is trained."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from ...growth import GrowthHistory
from ...growth.optimizer.rebind import rebind_optimizer_, same_shapes
from ...growth.surgery.changes import Changes
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import check_growable
from ..distributed import Replicas
from ..events.followers import adopt_history_, check_followers
from ..wrappers import find_ddp, is_compiled, rebuild_ddp_


def rebind_(
    model: nn.Module,
    optimizer: Optimizer,
    held: Mapping[str, nn.Parameter],
    *,
    followers: Sequence[GrowablePreTrainedModel] = (),
) -> Changes:
    """
    Make all that trains a model follow it after its parameters were replaced, as `load_state_dict` does for a
    checkpoint of other shapes; for hand-written loops. All processes call it, between two steps.

    The optimizer follows as in [`rebind_optimizer_`]; the history goes back to the event that led to the present
    shapes; the wrapper of DDP stays the same object, and what was compiled is compiled anew.

    Args:
        model (`nn.Module`): The model as it is trained, that is, what `accelerator.prepare` returned.
        optimizer (`Optimizer` or `AcceleratedOptimizer`): The optimizer that trains it.
        held (`Mapping[str, nn.Parameter]`): Names and parameters of the unwrapped model before.
        followers (`Sequence`, *optional*): Models that follow its growth, see [`growth_event_`].

    Returns:
        [`Changes`]: What happened to the parameters.

    Raises:
        ValueError: If no part of the growth history leads to the shapes of the model, or the optimizer cannot follow.
        RuntimeError: If the processes do not agree.

    Example:

    ```python
    >>> held = dict(model.named_parameters())
    >>> model.load_state_dict(earlier)
    >>> rebind_(model, optimizer, held)
    ```"""
    inner, replicas, wrapper = check_growable(model), Replicas.of(model), find_ddp(model)

    def follow() -> Changes:
        history = _history(inner, held)
        check_followers(inner, followers)
        changes = rebind_optimizer_(inner, optimizer, held)
        if history is not None:
            history.attach_(inner)
            inner.config.skip_unit = history.size.skip_unit
        adopt_history_(inner, followers)
        return changes

    changes = replicas.together("Following the new shapes of the model", follow)
    if wrapper is not None:
        rebuild_ddp_(wrapper)
    if is_compiled(model):
        torch.compiler.reset()
    replicas.check_same_model("the model that took other shapes", inner, optimizer)
    return changes


def _history(model: GrowablePreTrainedModel, held: Mapping[str, nn.Parameter]) -> GrowthHistory | None:
    """The part of a model's history that leads to its shapes, if it has one."""
    if model.growth_history is None and same_shapes(model, held):
        return None
    try:
        if model.growth_history is None:
            raise ValueError("The model has no growth history.")
        return GrowthHistory.from_model(model).rewound_to(model)
    except ValueError as error:
        raise ValueError(
            f"The model took other shapes while it was trained, and its growth history does not lead there. {error} "
            "Attach the history that belongs to these weights right after loading them "
            "(`model.growth_history = GrowthHistory.load(path).to_dict()`), or start a new training."
        ) from error
