"""The record of all growth events of a model: JSON that can be checked, replayed, printed, kept with the weights."""

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from ...models.configuration_saddle import SaddleConfig
from ...models.json_files import read_json, write_json
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.shapes import Shapes
from ..counting import count_macs, count_parameters
from ..values import is_int
from .block_records import config_with_
from .event import GrowthEvent, ModelSize
from .fields import ANY, COUNT, LIST, MACS, UNIT, Check, check_fields
from .following import check_follows
from .timing_record import Timing


_FIELDS: dict[str, Check] = {"schema_version": ANY, "initial": ANY, "events": LIST}
_INITIAL: dict[str, Check] = {"parameters": COUNT, "macs": MACS, "skip_unit": UNIT, "shapes": ANY}
Config = TypeVar("Config", bound=SaddleConfig)


class GrowthHistory:
    """
    All growth events of a model, in order.

    Args:
        initial ([`ModelSize`]): The model before the first event.
        events (`list[GrowthEvent]`, *optional*): What happened since.
    """

    schema_version = 1

    def __init__(self, initial: ModelSize, events: list[GrowthEvent] | None = None):
        self.initial = initial
        self.events = list(events or [])

    def __len__(self) -> int:
        return len(self.events)

    @classmethod
    def from_model(cls, model: GrowablePreTrainedModel) -> "GrowthHistory":
        """The history that is attached to a model, or a new one that starts at the model's present size."""
        if model.growth_history is None:
            size = ModelSize(count_parameters(model), count_macs(model), model.config.skip_unit, model.shapes())
            return cls(size)
        return cls.from_dict(model.growth_history)

    @classmethod
    def leading_to(cls, model: GrowablePreTrainedModel) -> "GrowthHistory":
        """
        As `from_model`, of a model that has the shapes at which its history ends.

        Raises:
            ValueError: If it has others, or the history is damaged.
        """
        history = cls.from_model(model)
        history.check_shapes(model)
        return history

    def attach_(self, model: GrowablePreTrainedModel) -> None:
        """Make this the model's history, to be saved with it."""
        model.growth_history = self.to_dict()

    def append(self, event: GrowthEvent) -> None:
        """
        Add an event.

        Raises:
            ValueError: If the event has a value that it cannot have, or does not follow from those before it.
        """
        event.check()
        check_follows(event, f"event {len(self.events)}", self.size)
        self.events.append(event)

    def update_last(self, event: GrowthEvent) -> None:
        """Replace the last event, once what was unknown while it happened (`loss_after`, `seconds`) is known."""
        last = self.events.pop()
        try:
            self.append(event)
        except ValueError:
            self.events.append(last)
            raise

    @property
    def size(self) -> ModelSize:
        """The model after the last event."""
        return self.events[-1].after if self.events else self.initial

    @property
    def timing(self) -> Timing | None:
        """That of the last event which has one."""
        return next((event.timing for event in reversed(self.events) if event.timing is not None), None)

    def matches(self, model: GrowablePreTrainedModel) -> bool:
        """Whether the history ends at the shapes that a model has."""
        # Without branches there are no units, and what the config names is only what they would be.
        shapes, kind = self.size.shapes, self.size.skip_unit
        return shapes == model.shapes() and (not shapes.skip_sizes or kind == model.config.skip_unit)

    def check_shapes(self, model: GrowablePreTrainedModel) -> None:
        """
        Verify that a model has the shapes to which the history leads.

        Raises:
            ValueError: If shapes or kind of units differ.
        """
        if not self.matches(model):
            raise ValueError(
                f"The growth history of {len(self.events)} events does not lead to the shapes of this model. If the "
                "model went back to an earlier checkpoint, attach "
                "`GrowthHistory.from_model(model).rewound_to(model)`; if it is another model, set "
                "`model.growth_history = None`."
            )

    def check(self, model: GrowablePreTrainedModel) -> None:
        """
        Verify that a model is what the history leads to.

        Raises:
            ValueError: If shapes, kind of units or number of parameters differ.
        """
        self.check_shapes(model)
        if count_parameters(model) != self.size.parameters:
            raise ValueError(
                f"The growth history ends at {self.size.parameters} parameters, but the model has "
                f"{count_parameters(model)}. Parts other than its linears were exchanged, such as the head."
            )

    def rewound_to(self, model: GrowablePreTrainedModel) -> "GrowthHistory":
        """
        The longest part of the history that leads to a model's shapes, for a model that went back to a checkpoint.

        Raises:
            ValueError: If no part does.
        """
        for length in range(len(self.events), -1, -1):
            history = GrowthHistory(self.initial, self.events[:length])
            if history.matches(model):
                return history
        raise ValueError("No part of the growth history leads to the shapes of this model: it belongs to another one.")

    def apply(self, config: Config) -> Config:
        """
        Replay: the config of the ungrown model, with the shapes and kind of units after the last event.

        Raises:
            ValueError: If the config is not that of the model before the first event.
        """
        grown = copy.deepcopy(config)
        asked, initial = Shapes.of_config(config), self.initial.shapes
        # An encoder or decoder alone has a config of both.
        sides = {root.partition(".")[0] for root in initial.widths}
        widths = {root: width for root, width in asked.widths.items() if root.partition(".")[0] in sides}
        if Shapes(widths, asked.skip_sizes, asked.heads) != initial:
            raise ValueError(f"The shapes of the config are not what the history starts from: {initial.to_json()}.")
        before = initial
        for event in self.events:
            config_with_(grown, before, event.new_blocks)
            before = event.shapes
        self.size.shapes.write_(grown, self.size.skip_unit)
        return grown

    def to_dict(self) -> dict[str, Any]:
        """The history, fit for JSON."""
        initial = asdict(self.initial) | {"shapes": self.initial.shapes.to_json()}
        events = [event.to_dict() for event in self.events]
        return {"schema_version": self.schema_version, "initial": initial, "events": events}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GrowthHistory":
        """
        The inverse of `to_dict`.

        Raises:
            ValueError: If it is of another schema, lacks a field, or contradicts itself.
        """
        found = values.get("schema_version") if isinstance(values, Mapping) else values
        if not is_int(found) or found != cls.schema_version:
            raise ValueError(
                f"The growth history has `schema_version` {found!r}, this version reads {cls.schema_version}."
            )
        check_fields(values, _FIELDS, "growth history")
        initial, events = values["initial"], values["events"]
        check_fields(initial, _INITIAL, "initial")
        shapes = Shapes.of_json(initial["shapes"], "initial.shapes")
        history = cls(ModelSize(**dict(initial) | {"shapes": shapes}))
        for index, event in enumerate(events):
            try:
                history.append(GrowthEvent.from_dict(event))
            except ValueError as error:
                raise ValueError(f"Event {index} of the growth history is damaged: {error}") from error
        return history

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "GrowthHistory":
        """
        Read a history that `save` or `save_pretrained` wrote.

        Raises:
            ValueError: If the file is not a growth history.
        """
        values = read_json(path, "The growth history")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"The growth history {path} is damaged. {error}") from error

    def table(self) -> str:
        """One line per event, as a Markdown table."""
        header = ["event", "step", "epoch", "neurons", "operators", "parameters", "MACs/sample", "loss before → after"]
        lines = [header, ["---"] * len(header)]
        lines.append(["start", "", "", "", "", f"{self.initial.parameters:,}", f"{self.initial.macs:,}", ""])
        for index, event in enumerate(self.events, 1):
            losses = [event.loss_before, event.loss_after]
            change = " → ".join("?" if loss is None else f"{loss:.4f}" for loss in losses)
            time = ["" if event.step is None else str(event.step), "" if event.epoch is None else f"{event.epoch:.2f}"]
            counts = [f"{event.parameters_after:,}", f"{event.macs_after:,}"]
            kinds = ", ".join(event.operators) or "none"
            known = change if losses != [None, None] else ""
            lines.append([str(index), *time, event.grown, kinds, *counts, known])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def summary(self) -> str:
        """One sentence."""
        grown = sum(event.neurons for event in self.events)
        heads = sum(event.heads for event in self.events)
        also = f" and {heads} attention heads" if heads else ""
        start, end = self.initial.parameters, self.size.parameters
        return (
            f"{len(self.events)} growth events, {grown} neurons{also}: {start:,} → {end:,} parameters "
            f"(×{end / start:.2f})."
        )
