"""What an event will do, as data: which layers grow and which blocks are inserted, and what that costs and gains."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from ...models.json_files import parse_json
from ...models.shapes import Shapes
from ...models.sites import Place
from ..operators import OPERATORS, SCALED
from ..values import is_int
from . import fields as checks
from .block_records import BLOCK_OPERATORS, NewBlock, blocks_with, new_blocks
from .layer_growth import LayerGrowth
from .timing_record import Timing


PLAN_SCHEMA = 3
# What a predicted gain is of: the event itself, or, where units stay at rest, the half natural step that would follow.
FORECASTS = ("event", "next step")
# Of events, too.
SHARED_FIELDS: dict[str, checks.Check] = {
    "criterion": checks.optional(checks.TEXT),
    "candidates": checks.mapping(checks.COUNT, checks.one_of((*OPERATORS, *BLOCK_OPERATORS))),
    "held_back": checks.optional(checks.TEXT),
    "forecast": checks.optional(checks.one_of(FORECASTS)),
    "predicted_error": checks.optional(checks.AMOUNT),
    "blocks": checks.LIST,
}
_FIELDS: dict[str, checks.Check] = SHARED_FIELDS | {
    "growths": checks.LIST,
    "budget": checks.optional(checks.NUMBER),
    "parameters": checks.COUNT,
    "macs": checks.MACS,
    "seed": checks.must("a whole number", is_int),
    "freeze": checks.FLAG,
    "timing": checks.ANY,
}
# What those of earlier schemas do not have.
LATER_FIELDS: dict[str, Any] = {"candidates": {}, "blocks": []} | dict.fromkeys(
    ("held_back", "forecast", "predicted_error", "timing")
)


@dataclass(frozen=True, eq=False)
class GrowthPlan:
    """
    What an event will do. A plan without growths is a valid answer: nothing was significant, or the budget is spent.

    Attributes:
        growths (`tuple[LayerGrowth, ...]`): In the order of the model.
        criterion (`str`, *optional*): What ranked the neurons; `None` for a plan by hand.
        budget (`float`, *optional*): What the event was allowed to add; `None` for no limit.
        parameters (`int`): Parameters that the plan adds.
        macs (`int`): Multiply-accumulates that it adds to the forward pass of one sample.
        seed (`int`): Seed of what was drawn at random.
        candidates (`dict[str, int]`): Neurons that could have been chosen, by operator.
        held_back (`str`, *optional*): Why nothing grows, where nothing does.
        forecast (`str`, *optional*): What `predicted_gain` is of, see there.
        predicted_error (`float`, *optional*): Its standard error, by the choice of the samples that judge.
        blocks (`tuple[NewBlock, ...]`): Whole blocks that are inserted, as copies of others before those grow. All
            paths of a plan are those before the event.
        freeze (`bool`): Whether only inserted blocks are trained from then on.
        timing ([`Timing`], *optional*): What it costs in seconds, where seconds limit the size.
    """

    growths: tuple[LayerGrowth, ...] = ()
    criterion: str | None = None
    budget: float | None = None
    parameters: int = 0
    macs: int = 0
    seed: int = 0
    candidates: dict[str, int] = field(default_factory=dict)
    held_back: str | None = None
    forecast: str | None = None
    predicted_error: float | None = None
    blocks: tuple[NewBlock, ...] = ()
    freeze: bool = False
    timing: Timing | None = None

    def __post_init__(self) -> None:
        if self.freeze and (not self.blocks or self.growths):
            raise ValueError(
                "`freeze` leaves only inserted blocks to be trained: a plan that has none, or that lets others grow, "
                "cannot ask for it."
            )

    def __bool__(self) -> bool:
        return bool(self.growths or self.blocks)

    @property
    def chosen(self) -> dict[str, int]:
        """What grows or is inserted, counted by operator."""
        chosen = Counter(f"block_{block.how}" for block in self.blocks)
        for growth in self.growths:
            chosen[growth.operator] += len(growth.neurons)
        return dict(chosen)

    def growths_behind(self, shapes: Shapes) -> tuple[LayerGrowth, ...]:
        """Its growths by the paths that they have once its blocks are inserted into a model of some shapes."""
        if not self.blocks:
            return self.growths
        places = [Place.parse(growth.linear) for growth in self.growths]
        now = blocks_with([place.block for place in places], shapes, self.blocks)
        pairs = zip(self.growths, places, now, strict=False)  # new blocks come last
        return tuple(replace(growth, linear=place.within(block)) for growth, place, block in pairs)

    @property
    def predicted_gain(self) -> float:
        """
        Decrease of the loss of samples that chose nothing, the sum over its growths.

        With the `forecast` `"event"` it is what the event does to them at once, and with `"next step"`, where units
        start at rest, what a half natural step after the event would bring. Plans without a forecast have the gains of
        their report, of neurons that grow alone, by which they were ranked; nobody has judged these together.

        New heads and blocks start at rest. Beside others that move, with the forecast `"event"`, what is predicted of
        their next half natural step is not of the event: it is told of each of them, and is not in the sum.
        """
        at_once = self.forecast == "event"
        counted = [growth for growth in self.growths if not at_once or growth.operator in SCALED]
        blocks = () if at_once else self.blocks
        return sum(float(growth.predicted_gain.sum()) for growth in counted) + sum(
            block.predicted_gain for block in blocks
        )

    def to_json(self) -> str:
        """The plan as canonical JSON."""
        values = {name: getattr(self, name) for name in _FIELDS if name not in ("growths", "blocks", "timing")}
        values |= {"schema": PLAN_SCHEMA, "growths": [growth.to_dict() for growth in self.growths]}
        values["blocks"] = [block.to_dict() for block in self.blocks]
        values["timing"] = None if self.timing is None else self.timing.to_dict()
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "GrowthPlan":
        """
        The inverse of `to_json`, bit for bit.

        Raises:
            ValueError: If it is not a plan, is of another schema, or is damaged.
        """
        values = parse_json(text, "The growth plan")
        schema = values.pop("schema", None)
        if is_int(schema) and 1 <= schema < PLAN_SCHEMA:
            values, schema = LATER_FIELDS | {"freeze": False} | values, PLAN_SCHEMA
        if not is_int(schema) or schema != PLAN_SCHEMA:
            raise ValueError(
                f"This is not a growth plan of `schema` {PLAN_SCHEMA}, got {schema!r}; make it anew with this version."
            )
        checks.check_fields(values, _FIELDS, "growth plan", inside="")
        values["growths"] = tuple(LayerGrowth.from_dict(growth) for growth in values["growths"])
        values["blocks"] = new_blocks(values["blocks"])
        values["timing"] = Timing.from_dict(values["timing"])
        return cls(**values)

    def digest(self) -> str:
        """SHA-256 of the plan; equal on all ranks if they are about to do the same."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
