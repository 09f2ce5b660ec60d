"""What every growth in a training goes through, on all processes: checked, decided, done, measured, recorded."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ...curvature.loss import Loss, own_loss_of
from ...growth import GrowthConfig, GrowthEvent, GrowthPlan, record_
from ...growth.surgery.temporary import Growing
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..distributed import Replicas
from .decision import Decision, decide
from .measuring import loss_afterwards, loss_before
from .moment import Moment
from .probe import event_seed, private_randomness


class Trained(Protocol):
    """
    A model as it is trained, with all that has to follow when it grows.

    Attributes:
        model ([`GrowablePreTrainedModel`]): The model without wrappers.
        replicas ([`Replicas`]): The processes that train it.
        growing (`Callable`): Lets it be as a plan makes it, for a while.
    """

    model: GrowablePreTrainedModel
    replicas: Replicas
    growing: Growing

    def check(self, config: GrowthConfig | None) -> None:
        """Raise a `ValueError` if on this process it cannot grow by a config, or by a plan at hand."""

    def check_together(self, batches: Sequence[Any], config: GrowthConfig | None) -> None:
        """Raise an error if the processes do not fit each other."""

    def grow_(self, plan: GrowthPlan, **record: Any) -> tuple[GrowthEvent, Callable[[], None]]:
        """Grow on all processes or on none. Returns the record, and what undoes it."""

    def settle_(self) -> None:
        """Let the rest follow a growth that stays."""


def grow_by_config_(
    trained: Trained,
    batches: Sequence[Any],
    config: GrowthConfig,
    moment: Moment,
    loss: Loss | None,
    **record: Any,
) -> GrowthEvent:
    """Measure, plan and grow; `record` are `step` and `epoch`, the other arguments those of [`growth_event_`]."""
    loss = loss or own_loss_of(trained.model, batches, trained.replicas)

    def decision() -> Decision:
        return decide(
            trained.model, batches, config, moment, loss=loss, replicas=trained.replicas, growing=trained.growing
        )

    with trained.replicas.noting(f"growth event {moment.event}"), private_randomness(event_seed(config, moment.event)):
        return _carry_out_(trained, batches, config, decision, loss, **record)


def grow_at_hand_(
    trained: Trained, batches: Sequence[Any], plan: GrowthPlan, loss: Loss | None, **record: Any
) -> GrowthEvent:
    """Grow by the plan of the first process; arguments as in [`grow_by_plan_`]."""
    loss = loss or own_loss_of(trained.model, batches, trained.replicas)

    def decision() -> Decision:
        before = loss_before(trained.model, batches, loss, trained.replicas)
        return Decision(trained.replicas.agree_on(plan), before, batches)

    with trained.replicas.noting("growth by a plan"), private_randomness(plan.seed):
        return _carry_out_(trained, batches, None, decision, loss, **record)


def _carry_out_(
    trained: Trained,
    batches: Sequence[Any],
    config: GrowthConfig | None,
    decision: Callable[[], Decision],
    loss: Loss,
    **record: Any,
) -> GrowthEvent:
    started, replicas = time.perf_counter(), trained.replicas
    replicas.together("Checking what follows the model", lambda: trained.check(config))
    trained.check_together(batches, config)
    plan, before, measured = decision()
    done, undo = trained.grow_(plan, loss_before=before, **record)
    if plan:
        try:
            done.loss_after = loss_afterwards(trained.model, measured, loss, replicas)
        except BaseException:
            undo()
            raise
        trained.settle_()
    done.seconds = time.perf_counter() - started
    record_(trained.model, done)
    return done
