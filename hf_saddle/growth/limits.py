"""How much a model grows: its final size and the share of an event; options with pure functions of them."""

import math
from dataclasses import dataclass, field

from ..models.config_fields import is_number
from .schedule import Schedule
from .values import check_bounds


# Nothing grows by more than that: what is larger was meant as a size, and a size that is smaller as a multiple.
MAX_MULTIPLE = 100
BUDGET_UNITS = ("parameters", "macs", "seconds")
_MAX_GROWTH = 1.5


@dataclass
class Limits(Schedule):
    """The fields of a [`GrowthConfig`] that say how much the model grows at its events."""

    max_growth: float | None = _MAX_GROWTH
    max_parameters: float | None = None
    max_macs: float | None = None
    event_budget: float | None = None

    budget_unit: str = field(default="auto", kw_only=True)

    schedule = "constant"  # a field of a `PaperGrowthConfig`

    def check_limits(self) -> None:
        """
        Verify that exactly one final size is given, or an event's share.

        Raises:
            ValueError: If a value cannot be meant.
        """
        if self.budget_unit not in ("auto", *BUDGET_UNITS):
            raise ValueError(f"`budget_unit` must be 'auto' or 'seconds', got {self.budget_unit!r}.")
        if self.budget_unit != "seconds":
            self.budget_unit = "parameters" if self.max_macs is None else "macs"
        if self.event_budget is not None:
            check_bounds(self, {"event_budget": (0, math.inf, False)})
        sizes = {"max_parameters": self.max_parameters, "max_macs": self.max_macs}
        for name, value in sizes.items():
            if value is not None and (not is_number(value) or value <= MAX_MULTIPLE):
                raise ValueError(
                    f"`{name}` must be a number above {MAX_MULTIPLE}, got {value!r}. A multiple is `max_growth`."
                )
        if self.max_growth is not None and (not is_number(self.max_growth) or not 1 < self.max_growth <= MAX_MULTIPLE):
            raise ValueError(
                f"`max_growth` must be a number above 1 and up to {MAX_MULTIPLE}, got {self.max_growth!r}. A size is "
                "`max_parameters` or `max_macs`."
            )
        given = [f"`{name}={value!r}`" for name, value in sizes.items() if value is not None]
        if given and self.max_growth == _MAX_GROWTH:
            self.max_growth = None
        if self.max_growth is not None:
            given.append(f"`max_growth={self.max_growth!r}`")
        if self.budget_unit == "seconds" and (self.max_parameters is not None or self.max_macs is not None):
            raise ValueError(f"`budget_unit='seconds'` counts no parameters or MACs: {given[0]} cannot limit them.")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both limit the size: leave one of them out.")
        if not given and self.event_budget is None:
            raise ValueError("`max_growth` and `event_budget` are both None: set one of them, or growth has no limit.")

    def final_budget(self, initial: float) -> float:
        """Size that the model may reach in `budget_unit`, given its size before the first event; infinite if None."""
        if self.max_growth is not None:
            return self.max_growth * initial
        size = self.max_parameters if self.max_macs is None else self.max_macs
        return math.inf if size is None else size

    def event_budget_for(
        self, event: int, *, remaining: float = math.inf, lr_ratio: float = 1.0, to_come: int | None = None
    ) -> float:
        """
        What an event may add.

        Args:
            event (`int`): Index of the event, from 0.
            remaining (`float`, *optional*, defaults to infinity): What is left of the final size.
            lr_ratio (`float`, *optional*, defaults to 1.0): Learning rate relative to its peak, for `schedule="lr"`.
            to_come (`int`, *optional*):
                Events that this training still has room for, this one included: they share what is left. Defaults to
                all of `at`.

        Returns:
            `float`: The budget in `budget_unit`, never above `remaining` nor below 0; infinite only without a limit.
        """
        events, left = len(self.times), len(self.times) - event
        if left <= 0:
            return 0.0
        falling = self.schedule == "linear"
        if self.event_budget is not None:
            due = self.event_budget * (left / events if falling else 1.0)
        else:
            sharing = left if to_come is None else max(1, min(left, to_come))
            # Of the shares n, n - 1, …, 1 the first is 2 / (n + 1) of their sum.
            due = remaining * (2 / (sharing + 1) if falling else 1 / sharing)
        if self.schedule == "lr":
            due *= lr_ratio
        return max(0.0, min(due, remaining))
