"""`GrowthTrainer`: a `Trainer` whose model may change its shapes."""

from typing import Any

import torch
from transformers import Trainer

from ..hub import ModelCardMixin
from .callback import GrowthCallback
from .distributed import find_ddp, follows, is_compiled, rebuild_ddp_


class GrowthTrainer(ModelCardMixin, Trainer):
    """
    HF `Trainer` for models that grow; same arguments. Needed for several processes, for reporters such as TensorBoard
    to see the growth, and for models that change between two calls of `train()`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._optimizer_was_given = self.optimizer is not None

    @property
    def growth_callbacks(self) -> list[GrowthCallback]:
        """The callbacks that let the model grow."""
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, GrowthCallback)]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """As in `Trainer`; an optimizer or a DDP wrapper that was made for earlier shapes of the model is renewed."""
        for callback in self.growth_callbacks:
            callback.trainer = self
        if self.optimizer is not None and not self._optimizer_was_given:
            held = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
            if not held <= set(self.model.parameters()):
                self.optimizer = None
        wrapper = find_ddp(self.model_wrapped)
        if wrapper is not None and not follows(wrapper):
            rebuild_ddp_(wrapper)
            if is_compiled(self.model_wrapped):
                torch.compiler.reset()
        return super().create_optimizer(model)
