"""When in a training an event is, and what is known by then."""

from dataclasses import dataclass

from ...growth import GrowthConfig, event_budget
from ...growth.records.timing_record import Timing
from ...models.modeling_saddle import GrowablePreTrainedModel


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

    def allows(self, model: GrowablePreTrainedModel, config: GrowthConfig, timing: Timing | None = None) -> float:
        """What the event may add to a model, see [`event_budget`]."""
        return event_budget(model, config, self.event, self.lr_ratio, self.to_come, timing)
