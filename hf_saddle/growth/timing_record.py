"""What growing costs in seconds on the machine that trains, as plans and histories keep it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .values import is_number


@dataclass(frozen=True)
class Timing:
    """
    Seconds of a training step, and what each kind of growth adds to them.

    Attributes:
        step (`float`): Seconds of a forward and backward pass of a probe batch before the first event that was timed.
        added (`float`): What the events since then have added, by these rates, the last one included.
        rates (`dict[str, float]`): Seconds for each multiply-accumulate per sample, by operator and place in a block.
    """

    step: float
    added: float
    rates: dict[str, float]

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
        fits = (
            isinstance(values, Mapping)
            and set(values) == {"step", "added", "rates"}
            and is_number(values["step"])
            and values["step"] > 0
            and is_number(values["added"])
            and values["added"] >= 0
            and isinstance(values["rates"], Mapping)
            and all(isinstance(name, str) and is_number(rate) and rate > 0 for name, rate in values["rates"].items())
        )
        if not fits:
            raise ValueError(f"A `timing` must have seconds of a `step`, those `added`, and `rates`, got {values!r}.")
        return cls(float(values["step"]), float(values["added"]), dict(values["rates"]))
