"""A model that every process holds whole, as it is trained: wrapped, compiled, followed by others."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from ...growth import GrowthConfig, GrowthEvent, GrowthPlan, PreparedGrowth, prepare_growth
from ...growth.surgery.grow import Growing, growing_
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import check_growable
from ..checks.optimizer_checks import check_optimizer
from ..distributed import Replicas, processes
from ..wrappers import ddp_arguments, find_ddp, follows, is_compiled, rebuild_ddp_
from .followers import adopt_history_, check_followers


logger = logging.getLogger(__name__)


class Whole:
    """A [`Trained`] model of which every process has a copy; arguments are those of [`growth_event_`]."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        followers: Sequence[GrowablePreTrainedModel] = (),
        group: "dist.ProcessGroup | None" = None,
    ):
        self.model = check_growable(model)
        self.replicas = Replicas.of(model) if group is None else Replicas(group)
        self.growing: Growing = growing_
        self.wrapped, self.optimizer, self.followers = model, optimizer, followers

    def check(self, config: GrowthConfig | None) -> None:
        """Raise a `ValueError` if optimizer, DDP wrapper or followers are of another model."""
        if self.optimizer is not None:
            check_optimizer(self.model, self.optimizer)
        if config is not None and self.replicas.group is None and processes() > 1:
            # Not refused: a process may well train a model of its own.
            logger.warning(
                f"{processes()} processes run, but the model is in no DDP wrapper: each of them decides for itself "
                "what grows. If they train one model, pass what `accelerator.prepare` returned (without GPUs that of "
                "`Accelerator(cpu=True)`), or their `group`."
            )
        wrapper = find_ddp(self.wrapped)
        if wrapper is not None and not follows(wrapper):
            raise ValueError(
                "The DDP wrapper was made for other parameters and does not average the gradients of the model's. It "
                "has changed its shapes since (a checkpoint was loaded). Call `rebind_` right after that."
            )
        check_followers(self.model, self.followers)

    def check_together(self, batches: Sequence[Any], config: GrowthConfig | None) -> None:
        """Raise a `RuntimeError` if the copies have drifted apart."""
        self.replicas.check_same_model("model and optimizer before the growth", self.model, self.optimizer)

    def grow_(self, plan: GrowthPlan, **record: Any) -> tuple[GrowthEvent, Callable[[], None]]:
        """Grow model, optimizer and followers."""
        wrapper = find_ddp(self.wrapped)

        def prepare() -> list[PreparedGrowth]:
            if wrapper is not None:
                ddp_arguments(wrapper)  # refuses what cannot follow
            adopt_history_(self.model, self.followers)
            own = prepare_growth(self.model, plan, self.optimizer, **record)
            return [own, *(prepare_growth(follower, plan, **record) for follower in self.followers)]

        prepared = self.replicas.together("The growth", prepare)

        def undo() -> None:
            for each in prepared:  # those that were not committed are as before anyway
                each.rollback_()

        try:
            for each in prepared:
                each.commit_()
        except BaseException:
            undo()
            raise
        if plan and is_compiled(self.wrapped):
            # A limited number of recompilations is allowed, after which torch silently runs eagerly.
            torch.compiler.reset()
        return prepared[0].event, undo

    def settle_(self) -> None:
        """Let the DDP wrapper follow, and compare the copies."""
        wrapper = find_ddp(self.wrapped)
        if wrapper is not None:
            rebuild_ddp_(wrapper)
        self.replicas.check_same_model("model and optimizer after the growth", self.model, self.optimizer)
