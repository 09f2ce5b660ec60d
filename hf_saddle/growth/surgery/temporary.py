"""A model as a plan makes it, for a while, to be measured."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from ...models.modeling_saddle import GrowablePreTrainedModel
from ..records.plan import GrowthPlan
from .grow import prepare_growth


# Lets a model be as a plan makes it while its context lasts.
Growing = Callable[[GrowablePreTrainedModel, GrowthPlan], AbstractContextManager[None]]


@contextmanager
def growing_(model: GrowablePreTrainedModel, plan: GrowthPlan) -> Iterator[None]:
    """The model itself grows, and goes back."""
    prepared = prepare_growth(model, plan)
    prepared.commit_()
    try:
        yield
    finally:
        prepared.rollback_()
