"""What growing costs in seconds on the machine that trains, as plans and histories keep it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ...models.config_fields import is_number
from .fields import AMOUNT, TEXT, Check, check_fields, mapping, must


_SECONDS = mapping(AMOUNT, TEXT)
_FIELDS: dict[str, Check] = {
    "step": must("a finite number above 0", lambda value: is_number(value) and value > 0),
    "added": AMOUNT,
    "rates": _SECONDS,
    "calls": _SECONDS,
}


@dataclass(frozen=True)
class Timing:
    """
    Seconds of a training step, and what each kind of growth adds to them.

    Attributes:
        step (`float`): Seconds of a forward and backward pass of a probe batch before the first event.
        added (`float`): What the events since then have added, by these rates, the last one included.
        rates (`dict[str, float]`): Seconds for each multiply-accumulate per sample, by operator.
        calls (`dict[str, float]`): Seconds that the first branch of a layer takes beside that, by operator.
    """

    step: float
    added: float
    rates: dict[str, float]
    calls: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Timing | None":
        """
        The inverse of `to_dict`; `None` stays what it is.

        Raises:
            ValueError: If it is damaged.
        """
        if values is None:
            return None
        check_fields(values, _FIELDS, "timing")
        return cls(float(values["step"]), float(values["added"]), dict(values["rates"]), dict(values["calls"]))
