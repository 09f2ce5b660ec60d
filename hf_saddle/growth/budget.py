"""What an event may add to a model, and what is left of that while it chooses."""

import math

from ..models.modeling_saddle import GrowablePreTrainedModel
from .config import GrowthConfig
from .costs import Cost, CostBook
from .counting import count_macs, count_parameters
from .paper import QUOTAS
from .records.history import GrowthHistory
from .records.timing_record import Timing


class Candidate:
    """
    Something that could grow: a neuron, a head, or a block.

    Attributes:
        operator (`str`): How, by name.
        place (`str`): Name in its block of what it is of.
        once (`tuple[str, int]`): What grows at most once an event.
        opens (`str`, *optional*): The layer that gets its first branch by it.
    """

    operator: str
    place: str
    once: tuple[str, int]
    opens: str | None = None

    @property
    def timed_as(self) -> str:
        """The operator whose time it takes for what it costs."""
        return self.operator

    def cost(self, book: CostBook) -> Cost:
        """What it adds, after what is in a book."""
        raise NotImplementedError

    def book_(self, book: CostBook) -> None:
        """Note that it grows, where others cost more by it."""


class Budget:
    """
    What is left of the budget of an event while it chooses.

    Args:
        book ([`CostBook`]): Costs, and what was chosen.
        config ([`GrowthConfig`]): The unit of the budget, and whether quotas share it.
        allowed (`float`): What the event may add.
        timing ([`Timing`], *optional*): What kinds of growth take; for a budget of seconds.
    """

    def __init__(self, book: CostBook, config: GrowthConfig, allowed: float, timing: Timing | None = None):
        self.book, self.unit, self.timing = book, config.budget_unit, timing
        self.opened: set[str] = set()  # layers that get their first branch
        self.shares = [allowed / len(QUOTAS)] * len(QUOTAS) if config.quotas else [allowed]
        groups = enumerate(QUOTAS) if config.quotas else ()
        self.quota_of = {linear: index for index, group in groups for linear in group}

    def price(self, candidate: Candidate) -> float:
        """What a candidate adds, which depends on what was chosen before."""
        cost = candidate.cost(self.book)
        if self.timing is None:
            return in_unit(cost, self.unit)
        kind = candidate.timed_as
        new = candidate.opens is not None and candidate.opens not in self.opened
        return cost.macs * self.timing.rates[kind] + (self.timing.calls.get(kind, 0.0) if new else 0.0)

    def admit(self, candidate: Candidate) -> bool:
        """Pay for a candidate, if it fits into what is left."""
        quota, price = self.quota_of.get(candidate.place, 0), self.price(candidate)
        if price > self.shares[quota]:
            return False
        self.book_(candidate)
        self.shares[quota] -= price
        return True

    def book_(self, candidate: Candidate) -> None:
        """Note that a candidate grows."""
        candidate.book_(self.book)
        if candidate.opens is not None:
            self.opened.add(candidate.opens)


def in_unit(cost: Cost, unit: str) -> float:
    """A cost in parameters or multiply-accumulates."""
    return cost.macs if unit == "macs" else cost.parameters


def event_budget(
    model: GrowablePreTrainedModel,
    config: GrowthConfig,
    event: int,
    lr_ratio: float = 1.0,
    to_come: int | None = None,
    timing: Timing | None = None,
) -> float:
    """What an event may add to a model, in `config.budget_unit`; infinite without a limit, and as [`sizes`] says."""
    size, _, final = sizes(model, config, timing)
    return config.event_budget_for(event, remaining=final - size, lr_ratio=lr_ratio, to_come=to_come)


def sizes(
    model: GrowablePreTrainedModel, config: GrowthConfig, timing: Timing | None = None
) -> tuple[float, float, float]:
    """
    The size of a model as it is, before its first event, and at most, in `config.budget_unit`. Seconds are those of
    `timing`, or of the last event that was timed; before that 0, 0 and infinite.
    """
    history = None if model.growth_history is None else GrowthHistory.from_model(model)
    if config.budget_unit == "seconds":
        timing = timing or (None if history is None else history.timing)
        if timing is None:
            return 0.0, 0.0, math.inf
        return timing.step + timing.added, timing.step, config.final_budget(timing.step)
    by_macs = config.budget_unit == "macs"
    size = initial = count_macs(model) if by_macs else count_parameters(model)
    if history is not None:
        initial = history.initial.macs if by_macs else history.initial.parameters
    return size, initial, config.final_budget(initial)
