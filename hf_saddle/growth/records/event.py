"""What one event did to a model: a record that is JSON, with the maps from old to new parameters beside it."""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from ...models.shapes import Shapes
from ..operators import HEAD_OPERATORS, NEURON_OPERATORS, OPERATORS
from . import fields as checks
from .block_records import NewBlock, new_blocks
from .layer_record import check_record
from .plan import LATER_FIELDS, SHARED_FIELDS
from .timing_record import Timing


_NOT_SAVED = ("replaced", "added")
_FIELDS: dict[str, checks.Check] = SHARED_FIELDS | {
    "operators": checks.each(checks.TEXT),
    "layers": checks.LIST,
    "predicted_gain": checks.NUMBER,
    "budget": checks.optional(checks.AMOUNT),
    "step": checks.optional(checks.MACS),
    "epoch": checks.optional(checks.AMOUNT),
    "loss_before": checks.optional(checks.NUMBER),
    "loss_after": checks.optional(checks.NUMBER),
    "parameters_before": checks.COUNT,
    "parameters_after": checks.COUNT,
    "macs_before": checks.MACS,
    "macs_after": checks.MACS,
    "seconds": checks.AMOUNT,
    "skip_unit": checks.UNIT,
    "versions": checks.mapping(checks.TEXT, checks.TEXT),
    "frozen": checks.FLAG,
}


@dataclass
class GrowthEvent:
    """
    What one event did.

    Losses are of the probe set, in evaluation mode. `predicted_gain` is what `forecast` says, see
    [`GrowthPlan.predicted_gain`]; without a forecast, as in histories of version 0.2, it is no prediction. Its
    standard error is `predicted_error`. MACs are multiply-accumulates of the forward pass of one sample.
    """

    criterion: str | None = None
    operators: list[str] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)  # one entry per layer and operator, see `layer_record`
    predicted_gain: float = 0.0
    budget: float | None = None
    step: int | None = None
    epoch: float | None = None
    loss_before: float | None = None  # None: not measured
    loss_after: float | None = None
    candidates: dict[str, int] = field(default_factory=dict)  # neurons that could have been chosen, by operator
    held_back: str | None = None  # why nothing grew, where nothing did
    forecast: str | None = None  # what `predicted_gain` is of
    predicted_error: float | None = None  # its standard error
    parameters_before: int = 0
    parameters_after: int = 0
    macs_before: int = 0
    macs_after: int = 0
    seconds: float = 0.0
    skip_unit: str = "gain"
    shapes: Shapes = field(default_factory=Shapes)  # after the event
    versions: dict[str, str] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)  # that were inserted, see `NewBlock.to_dict`
    frozen: bool = False  # whether only blocks that were inserted have been trained since
    timing: Timing | None = None  # what it costs in seconds, where seconds limit the size
    replaced: dict[nn.Parameter, nn.Parameter] = field(default_factory=dict, repr=False, compare=False)
    added: dict[str, nn.Parameter] = field(default_factory=dict, repr=False, compare=False)

    @property
    def after(self) -> "ModelSize":
        """The size of the model after the event."""
        return ModelSize(self.parameters_after, self.macs_after, self.skip_unit, self.shapes)

    @property
    def new_blocks(self) -> tuple[NewBlock, ...]:
        """The blocks that were inserted."""
        return new_blocks(self.blocks)

    @property
    def neurons(self) -> int:
        """Number of neurons that grew."""
        return sum(layer["chosen"] for layer in self.layers if layer["operator"] in NEURON_OPERATORS)

    @property
    def heads(self) -> int:
        """Number of attention heads that came."""
        return sum(layer["chosen"] for layer in self.layers if layer["operator"] in HEAD_OPERATORS)

    @property
    def grown(self) -> str:
        """How many neurons, and heads where there are any, for a table."""
        return f"{self.neurons:,}" + (f" and {self.heads:,} heads" if self.heads else "")

    @property
    def chosen(self) -> dict[str, int]:
        """What grew or was inserted, counted by operator."""
        chosen = Counter(f"block_{block['how']}" for block in self.blocks)
        for layer in self.layers:
            chosen[layer["operator"]] += layer["chosen"]
        return dict(chosen)

    def to_dict(self) -> dict[str, Any]:
        """The event fit for JSON, without `replaced` and `added`."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _NOT_SAVED}
        timing = None if self.timing is None else self.timing.to_dict()
        return copy.deepcopy(values) | {"shapes": self.shapes.to_json(), "timing": timing}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GrowthEvent":
        """
        The inverse of `to_dict`.

        Raises:
            ValueError: If a field is unknown, missing, or cannot be meant.
        """
        if isinstance(values, Mapping):
            values = LATER_FIELDS | {"frozen": False} | dict(values)
        checks.check_fields(values, dict.fromkeys((*_FIELDS, "shapes", "timing"), checks.ANY), "event")
        read = {"shapes": Shapes.of_json(values["shapes"], "shapes"), "timing": Timing.from_dict(values["timing"])}
        event = cls(**copy.deepcopy(dict(values)) | read)
        event.check()
        return event

    def check(self) -> None:
        """
        Verify that the event can be written, and read again.

        Raises:
            ValueError: If a field has a value that it cannot have; the message names it.
        """
        checks.check_attributes(self, _FIELDS)
        Shapes.of_json(self.shapes.to_json(), "shapes")
        Timing.from_dict(None if self.timing is None else self.timing.to_dict())
        blocks = self.new_blocks
        if self.frozen and (self.layers or not blocks):
            raise ValueError(
                f"A growth event with {len(blocks)} new blocks, {len(self.layers)} layers and "
                f"`frozen={self.frozen!r}` cannot be; the history is damaged."
            )
        for index, record in enumerate(self.layers):
            check_record(record, f"layers[{index}]", self.shapes)
        wanted = sorted(self.chosen)
        if self.operators != wanted and (wanted or not self.is_merge):
            raise ValueError(
                f"`operators` of a growth event must be those of its layers, {wanted}, got {self.operators!r}."
            )
        kinds = {OPERATORS[layer["operator"]].kind for layer in self.layers} - {None, self.skip_unit}
        if kinds:
            raise ValueError(
                f"`skip_unit` of a growth event is {self.skip_unit!r}, but its operators add {kinds.pop()!r}."
            )
        added = self.parameters_after - self.parameters_before
        if blocks and (added <= 0 or self.macs_after < self.macs_before):
            raise ValueError("New blocks of a growth event add parameters and MACs; the history is damaged.")
        if not self.layers and not blocks and added != 0 and not self.is_merge:
            raise ValueError("A growth event without layers changes the number of parameters; the history is damaged.")
        if self.is_merge and (added >= 0 or self.macs_after != self.macs_before):
            raise ValueError("A merge of residual pairs must lower `parameters_after`; the history is damaged.")
        if self.layers and (added < self.neurons + self.heads or self.macs_after < self.macs_before):
            raise ValueError(
                "A growth event with layers adds fewer parameters than neurons, or loses MACs: `parameters_after` or "
                "`macs_after` is damaged."
            )

    @property
    def is_merge(self) -> bool:
        """Whether the event merged residual pairs, see [`merge_pairs_`]."""
        return self.operators == ["merge_pairs"]


@dataclass
class ModelSize:
    """Size and shapes of a model before its first event, or after one."""

    parameters: int
    macs: int
    skip_unit: str
    shapes: Shapes
