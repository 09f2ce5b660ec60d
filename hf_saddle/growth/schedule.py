"""When a model grows: shares of a training, epochs or steps; options with pure functions of them."""

import math
from dataclasses import dataclass
from itertools import pairwise

from ..models.config_fields import is_number
from .values import is_list


UNITS = ("training", "epochs", "steps")
# Few events and early ones ended best (docs/evidence.md); shares of a training fit a short one as well as a long one.
_AT = (0.1, 0.25, 0.4)


@dataclass
class Schedule:
    """The fields of a [`GrowthConfig`] that say when the model grows."""

    at: list[float] | None = None
    unit: str = "training"

    def settle_schedule(self) -> None:
        """
        Fill in the default.

        Raises:
            ValueError: If a value cannot be meant.
        """
        if self.unit not in UNITS:
            raise ValueError(f"`unit` must be one of {', '.join(UNITS)}, got {self.unit!r}.")
        if self.at is None and self.unit != "training":
            raise ValueError(f"`unit={self.unit!r}` needs `at`: list the {self.unit} after which the model grows.")
        if self.at is None or isinstance(self.at, tuple):
            self.at = list(self.at or _AT)  # a list, as a checkpoint keeps it
        end = 1 if self.unit == "training" else math.inf
        if not is_list(self.at, lambda time: is_number(time) and 0 <= time < end):
            meant = "shares of the training in [0, 1)" if self.unit == "training" else f"{self.unit} from 0 on"
            others = "; epochs and steps go with `unit='epochs'` or 'steps'" if self.unit == "training" else ""
            raise ValueError(f"`at` must be a list of {meant}, got {self.at!r}{others}.")
        if any(later <= earlier for earlier, later in pairwise(self.times)):
            raise ValueError(f"`at` must rise from event to event, got {self.at!r}.")

    @property
    def times(self) -> list[float]:
        """When the events are due, in `unit`."""
        assert self.at is not None  # `settle_schedule`
        return self.at

    def event_due(self, progress: float, events_done: int) -> bool:
        """
        Whether the next event is to happen.

        Args:
            progress (`float`): Time since the start of the training in `unit`.
            events_done (`int`): Events that happened so far, empty ones included.
        """
        slack = 1e-6  # epochs and shares are fractions of steps, and the tenth of ten tenths may be below one
        return events_done < len(self.times) and progress + slack >= self.times[events_done]
