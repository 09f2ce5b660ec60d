"""What the optimizer of a training holds, and how it follows a model that took other shapes outside of an event."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...growth import GrowthHistory
from ...growth.optimizer.rebind import same_parameters, watch_modules
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..sharding.resharding import show_shards_
from .rebind import rebind_


logger = logging.getLogger(__name__)


class Held:
    """The parameters of a model by name, as the optimizer holds them while a training runs; before and after, none."""

    def __init__(self) -> None:
        self._known: dict[str, nn.Parameter] = {}
        self._unchanged: Callable[[], bool] = bool

    def __bool__(self) -> bool:
        return bool(self._known)

    def note_(self, model: nn.Module) -> None:
        """From now on the optimizer holds what the model has."""
        show_shards_(model)
        self._known, self._unchanged = dict(model.named_parameters()), watch_modules(model)

    def forget_(self) -> None:
        """The training is over."""
        self._known, self._unchanged = {}, bool

    def fits(self, model: nn.Module) -> bool:
        """Whether the model has the very parameters that the optimizer holds."""
        show_shards_(model)
        return self._unchanged() or same_parameters(model, self._known)

    def follow_(
        self,
        model: GrowablePreTrainedModel,
        wrapped: Any,
        optimizer: Optimizer | None,
        followers: Sequence[GrowablePreTrainedModel],
        *,
        events_done: int,
        step: int,
    ) -> bool:
        """
        Make optimizer, wrapper and history follow a model that took other shapes by `load_state_dict`, with a warning.

        Args:
            model ([`GrowablePreTrainedModel`]): The model.
            wrapped (`nn.Module`): The model in its wrappers.
            optimizer (`Optimizer`, *optional*): What trains it; without one, nothing is to be done.
            followers (`Sequence[GrowablePreTrainedModel]`): Models that grow by the same plans.
            events_done (`int`): Events that happened so far, for the warning.
            step (`int`): The step that comes, for the warning.

        Returns:
            `bool`: Whether anything had to follow.
        """
        show_shards_(model)
        if optimizer is None or not self or self._unchanged():
            return False
        if same_parameters(model, self._known):
            self.note_(model)
            return False
        before = len(GrowthHistory.from_model(model))
        changes = rebind_(wrapped, optimizer, self._known, followers=followers)
        self.note_(model)
        logger.warning(
            f"Parameters of the model were replaced outside of a growth before step {step} (a checkpoint of other "
            f"shapes was loaded). The optimizer goes on with those of the model: {len(changes.replaced)} took the "
            f"place of others, {len(changes.added)} came, {len(changes.removed)} went; what has another shape starts "
            f"without state. The history goes from {before} to {len(GrowthHistory.from_model(model))} events; the "
            f"{events_done} that happened are not repeated."
        )
        return True
