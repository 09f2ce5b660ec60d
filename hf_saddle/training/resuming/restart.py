"""A training that ran out of memory starts again from what was there before its first step."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.operations import recursively_apply
from torch import nn
from transformers import Trainer

from ...curvature.capture.undisturbed import note_random_state
from ...growth.optimizer_rules import inner_optimizer
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..callback import GrowthCallback


def note_start(trainer: Trainer) -> Callable[[], None]:
    """
    Note what a training changes: the weights, shapes and histories of the model and its followers, the state of an
    optimizer and a scheduler that are already there, and the random generators of Python, NumPy and torch.

    The copies are in the memory of the host, one of each model's weights. Data sets and collators that keep a random
    generator of their own are not gone back to.

    Returns:
        `Callable`: Goes back to it, in place.
    """
    followers = [
        follower
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, GrowthCallback)
        for follower in callback.followers
    ]
    undo = [_note_model(model) for model in (trainer.model, *followers)]
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    undo += [_note_optimizer(trainer), note_random_state(gpus)]

    def go_back() -> None:
        for each in undo:
            each()

    return go_back


def _note_model(model: GrowablePreTrainedModel) -> Callable[[], None]:
    weights = _on_host(model.state_dict())
    history, unit = copy.deepcopy(model.growth_history), model.config.skip_unit

    def go_back() -> None:
        model.load_state_dict(weights)
        model.zero_grad()
        model.growth_history, model.config.skip_unit = copy.deepcopy(history), unit

    return go_back


def _note_optimizer(trainer: Trainer) -> Callable[[], None]:
    scheduler = None if trainer._created_lr_scheduler else trainer.lr_scheduler
    progress = None if scheduler is None else copy.deepcopy(scheduler.state_dict())
    if trainer.optimizer is None:

        def forget() -> None:
            trainer.optimizer = None

        return forget
    optimizer = inner_optimizer(trainer.optimizer)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    groups = [[names.get(parameter, parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    state = _on_host(optimizer.state_dict())

    def go_back() -> None:
        present = dict(trainer.model.named_parameters())
        optimizer.state.clear()
        for group, members in zip(optimizer.param_groups, groups, strict=True):
            # What is not of the model stays itself.
            group["params"][:] = [
                member if isinstance(member, nn.Parameter) else present[member] for member in members
            ]
        # Copies, because tensors of a state that is loaded are then updated in place.
        optimizer.load_state_dict(copy.deepcopy(state))
        if scheduler is not None:
            scheduler.load_state_dict(copy.deepcopy(progress))

    return go_back


def _on_host(state: Any) -> Any:
    return recursively_apply(lambda tensor: tensor.detach().to("cpu", copy=True), state)
