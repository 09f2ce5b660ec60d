"""When a model grows: shares of a training, or epochs and steps; options with pure functions of them."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .values import check_bounds, check_positive, help_, is_list, is_number


UNITS = ("epochs", "steps")
# Few events and early ones ended best (docs/evidence.md); shares of a training fit a short one as well as a long one.
_AT = (0.1, 0.25, 0.4)
# What fills up a schedule in epochs or steps that is given in part.
_PERIODIC: dict[str, Any] = {"warmup": 10, "interval": 10, "unit": "epochs"}
_NOT_GIVEN = -1
_NUM_EVENTS = 5


@dataclass
class Schedule:
    """The fields of a [`GrowthConfig`] that say when the model grows."""

    at: list[float] | None = field(
        default=None,
        kw_only=True,
        metadata=help_(
            "Events as shares of the training, such as 0.1 0.25 0.4, which is what None stands for unless `warmup`, "
            "`interval`, `unit` or `num_events` is given."
        ),
    )
    warmup: float | None = field(default=None, metadata=help_("First event, in `unit`; 10 if None."))
    interval: float | None = field(default=None, metadata=help_("Time between events, in `unit`; 10 if None."))
    unit: str | None = field(
        default=None, metadata=help_("Unit of `warmup` and `interval`: 'epochs' or 'steps'; epochs if None.")
    )
    num_events: int | None = field(
        default=_NOT_GIVEN,
        metadata=help_("Number of events by `warmup` and `interval`; None for no limit, -1 for 5."),
    )

    def settle_schedule(self) -> None:
        """
        Fill in one of the two schedules; what is given takes the place of the default.

        Raises:
            ValueError: If both are given, or a value cannot be meant.
        """
        given = {name: getattr(self, name) for name in _PERIODIC if getattr(self, name) is not None}
        # Beside `at`, None is no limit that could be meant.
        if self.num_events != _NOT_GIVEN and (self.at is None or self.num_events is not None):
            given["num_events"] = self.num_events
        if isinstance(self.at, tuple):
            self.at = list(self.at)
        if given and self.at == list(_AT):
            self.at = None
        if given and self.at is not None:
            told = ", ".join(f"`{name}={value!r}`" for name, value in given.items())
            raise ValueError(f"`at={self.at!r}` and {told} both say when the model grows: leave one of them out.")
        if not given:
            self.at = list(_AT) if self.at is None else self.at
            self.num_events = _NOT_GIVEN
            if not is_list(self.at, lambda share: is_number(share) and 0 <= share < 1):
                raise ValueError(
                    f"`at` must be a list of shares of the training in [0, 1), got {self.at!r}. Epochs and steps are "
                    "given by `warmup`, `interval` and `unit`."
                )
            if any(later <= earlier for earlier, later in pairwise(self.at)):
                raise ValueError(f"`at` must rise from event to event, got {self.at!r}.")
            return
        for name, value in _PERIODIC.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.num_events == _NOT_GIVEN:
            self.num_events = _NUM_EVENTS
        if self.unit not in UNITS:
            raise ValueError(f"`unit` must be one of {', '.join(UNITS)}, got {self.unit!r}.")
        check_bounds(self, {"warmup": (0, math.inf, False)})
        check_positive(self, "interval")
        if self.num_events is not None:
            check_bounds(self, {"num_events": (1, math.inf, True)})

    @property
    def events(self) -> int | None:
        """Number of events; None without a limit."""
        return self.num_events if self.at is None else len(self.at)

    def event_time(self, event: int) -> float:
        """When an event, counted from 0, is due: a share of the training with `at`, else in `unit`."""
        if self.at is not None:
            return self.at[event]
        assert self.warmup is not None and self.interval is not None  # `_settle_schedule`
        return self.warmup + event * self.interval

    def event_due(self, progress: float, events_done: int) -> bool:
        """
        Whether the next event is to happen.

        Args:
            progress (`float`): Time since the start of the training: the share of it that is over with `at`, else in
                `unit`.
            events_done (`int`): Events that happened so far, empty ones included.
        """
        if self.events is not None and events_done >= self.events:
            return False
        slack = 1e-6  # epochs and shares are fractions of steps, and the tenth of ten tenths may be below one
        return progress + slack >= self.event_time(events_done)
