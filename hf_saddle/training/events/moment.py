"""When in a training an event is, and what is known by then."""

from dataclasses import dataclass

from ...growth.records.timing_record import Timing


@dataclass(frozen=True)
class Moment:
    """
    When an event is.

    Attributes:
        event (`int`): Its index, from 0.
        lr_ratio (`float`): Learning rate relative to its peak.
        to_come (`int`, *optional*): Events that share what is left of the size, this one included; by default all.
        timing ([`Timing`], *optional*): What growth takes, measured before the first event; of later ones by it.
    """

    event: int = 0
    lr_ratio: float = 1.0
    to_come: int | None = None
    timing: Timing | None = None
