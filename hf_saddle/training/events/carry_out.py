"""What every growth in a training goes through, on all processes: checked, decided, done, measured, recorded."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ...curvature.loss import Loss, own_loss_of
from ...growth import GrowthConfig, GrowthEvent, GrowthPlan, record_
from ...growth.surgery.grow import Growing
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


def carry_out_(
    trained: Trained,
    batches: Sequence[Any],
    aim: GrowthConfig | GrowthPlan,
    moment: Moment,
    loss: Loss | None,
    **record: Any,
) -> GrowthEvent:
    """
    Grow by a config, that is measure and plan, or by the plan that the first process has.

    Args:
        trained ([`Trained`]): The model.
        aim ([`GrowthConfig`] or [`GrowthPlan`]): How it is to grow, or what.
        moment ([`Moment`]): When that is.
        record: `step` and `epoch`.
        batches, loss: See [`growth_event_`].
    """
    started, model, replicas = time.perf_counter(), trained.model, trained.replicas
    loss = loss or own_loss_of(model, batches, replicas)
    if isinstance(aim, GrowthPlan):
        config, what, seed = None, "growth by a plan", aim.seed
    else:
        config, what, seed = aim, f"growth event {moment.event}", event_seed(aim, moment.event)
    with replicas.noting(what), private_randomness(seed):
        replicas.together("Checking what follows the model", lambda: trained.check(config))
        trained.check_together(batches, config)
        if isinstance(aim, GrowthPlan):
            decision = Decision(replicas.agree_on(aim), loss_before(model, batches, loss, replicas), batches)
        else:
            decision = decide(model, batches, aim, moment, loss=loss, replicas=replicas, growing=trained.growing)
        plan, before, measured = decision
        done, undo = trained.grow_(plan, loss_before=before, **record)
        if plan:
            try:
                done.loss_after = loss_afterwards(model, measured, loss, replicas)
            except BaseException:
                undo()
                raise
            trained.settle_()
        done.seconds = time.perf_counter() - started
        record_(model, done)
        return done
