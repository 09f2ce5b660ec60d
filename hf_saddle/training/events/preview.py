"""What an event would do, found out as the event does and not carried out."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...curvature.loss import Loss, own_loss_of
from ...growth import GrowthConfig, GrowthPlan
from ..checks.model_checks import check_growable
from ..distributed import Replicas
from .decision import decide
from .moment import Moment
from .probe import event_seed, private_randomness


def plan_event(
    model: nn.Module,
    batches: Sequence[Any],
    config: GrowthConfig,
    *,
    event: int = 0,
    lr_ratio: float = 1.0,
    to_come: int | None = None,
    loss: Loss | None = None,
) -> GrowthPlan:
    """
    Plan an event as [`growth_event_`] does, and leave the model as it is. With the same arguments both do the same.

    Args:
        model (`nn.Module`): The model, in one process.
        batches (`Sequence`): The probe batches, see [`probe_batches`].
        config ([`GrowthConfig`]): Where, how and how much to grow.
        event, lr_ratio, to_come, loss: See [`growth_event_`].

    Returns:
        [`GrowthPlan`]: What would grow, and what that is predicted to do to the loss (`predicted_gain` ±
        `predicted_error`); an empty one says in `held_back` why nothing would. [`grow_`] carries it out.

    Raises:
        ValueError: If the model cannot grow, or nothing can be measured.
    """
    inner, alone = check_growable(model), Replicas()
    with private_randomness(event_seed(config, event)):
        decision = decide(
            inner,
            batches,
            config,
            Moment(event, lr_ratio, to_come),
            loss=loss or own_loss_of(inner, batches, alone),
            replicas=alone,
        )
    return decision.plan
