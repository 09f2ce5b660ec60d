"""What one event did to a model: a record that is JSON, with the maps from old to new parameters beside it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from ..models.configuration_saddle import LINEARS, SKIP_UNITS
from ..models.modeling_saddle import GrowablePreTrainedModel
from .config import is_int, is_number
from .costs import count_macs, count_parameters


_NOT_SAVED = ("replaced", "added")
_OPTIONAL_NUMBERS = ("budget", "step", "epoch", "loss_before", "loss_after")


@dataclass
class GrowthEvent:
    """
    What one event did.

    Losses are of the probe set, in evaluation mode. MACs are multiply-accumulates of the forward pass of one image.
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
    parameters_before: int = 0
    parameters_after: int = 0
    macs_before: int = 0
    macs_after: int = 0
    seconds: float = 0.0
    skip_unit: str = "gain"
    shapes: dict[int, dict[str, Any]] = field(default_factory=dict)  # `per_layer_config` after the event
    versions: dict[str, str] = field(default_factory=dict)
    replaced: dict[nn.Parameter, nn.Parameter] = field(default_factory=dict, repr=False, compare=False)
    added: dict[str, nn.Parameter] = field(default_factory=dict, repr=False, compare=False)

    @property
    def neurons(self) -> int:
        """Number of neurons that grew."""
        return sum(layer["chosen"] for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The event fit for JSON, without `replaced` and `added`."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _NOT_SAVED}
        return copy.deepcopy(values) | {"shapes": shapes_to_json(self.shapes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GrowthEvent":
        """
        The inverse of `to_dict`.

        Raises:
            ValueError: If a field is unknown, missing, or cannot be meant.
        """
        known = {item.name for item in fields(cls)} - set(_NOT_SAVED)
        if not isinstance(values, Mapping) or set(values) != known:
            found = sorted(set(values) ^ known) if isinstance(values, Mapping) else values
            raise ValueError(
                f"A growth event has the wrong fields: {found} differ. It is damaged or of another version."
            )
        event = cls(**copy.deepcopy(dict(values)) | {"shapes": shapes_from_json(values["shapes"])})
        for name in ("parameters_before", "parameters_after", "macs_before", "macs_after"):
            value = getattr(event, name)
            if not is_int(value) or value < 0:
                raise ValueError(f"`{name}` of a growth event must be a whole number, got {value!r}.")
        for name in ("predicted_gain", "seconds", *_OPTIONAL_NUMBERS):
            value = getattr(event, name)
            if not (is_number(value) or (value is None and name in _OPTIONAL_NUMBERS)):
                raise ValueError(f"`{name}` of a growth event must be a number, got {value!r}.")
        if not isinstance(event.operators, list) or not all(isinstance(name, str) for name in event.operators):
            raise ValueError(f"`operators` of a growth event must be a list of names, got {event.operators!r}.")
        if not isinstance(event.layers, list) or not all(_is_record(layer) for layer in event.layers):
            raise ValueError("`layers` of a growth event must be a list of records that say how many neurons grew.")
        if event.skip_unit not in SKIP_UNITS:
            raise ValueError(f"`skip_unit` of a growth event must be one of {SKIP_UNITS}, got {event.skip_unit!r}.")
        if not event.layers and event.parameters_after != event.parameters_before and not event.is_merge:
            raise ValueError("A growth event without layers changes the number of parameters; the history is damaged.")
        if event.layers and event.parameters_after <= event.parameters_before:
            raise ValueError("A growth event with layers adds no parameters; the history is damaged.")
        return event

    @property
    def is_merge(self) -> bool:
        """Whether the event merged residual pairs, see [`merge_pairs_`]."""
        return self.operators == ["merge_pairs"]


@dataclass
class ModelSize:
    """Size and shapes of a model before its first event."""

    parameters: int
    macs: int
    skip_unit: str
    shapes: dict[int, dict[str, Any]]

    @classmethod
    def of(cls, model: GrowablePreTrainedModel) -> "ModelSize":
        """The size of a model as it is."""
        return cls(count_parameters(model), count_macs(model), model.config.skip_unit, model.shapes())


def _is_record(layer: Any) -> bool:
    return isinstance(layer, Mapping) and is_int(layer.get("chosen"))


def shapes_to_json(shapes: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """JSON keys are strings; a layer's shapes are copied."""
    return {str(layer): copy.deepcopy(value) for layer, value in shapes.items()}


def shapes_from_json(shapes: Any) -> dict[int, dict[str, Any]]:
    if not isinstance(shapes, Mapping) or not shapes:
        raise ValueError(f"`shapes` of a growth history must map layers to their shapes, got {shapes!r}.")
    found = {}
    for layer, value in shapes.items():
        skip_sizes = value.get("skip_sizes") if isinstance(value, Mapping) else None
        width = value.get("intermediate_size") if isinstance(value, Mapping) else None
        fits = isinstance(width, int) and width > 0 and isinstance(skip_sizes, (Mapping, type(None)))
        if not str(layer).isdecimal() or not fits or not set(skip_sizes or ()) <= set(LINEARS):
            raise ValueError(f"`shapes[{layer}]` of a growth history is damaged: {value!r}.")
        found[int(layer)] = {"intermediate_size": width, "skip_sizes": copy.deepcopy(skip_sizes) or None}
    return found
