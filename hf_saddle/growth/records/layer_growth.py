"""What one layer will do at an event, as data: its neurons, the operator, and the directions along which they grow."""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models.modeling_saddle import GrowablePreTrainedModel
from ..operators import NEURON_OPERATORS, OPERATORS
from ..rows import find_site, layers_of, random_directions
from .fields import COUNT, NUMBER, TEXT, Check, check_fields, each


VECTORS = ("steps", "gains", "predicted_gain", "eigenvalues")
_FIELDS: dict[str, Check] = {
    "linear": TEXT,
    "operator": TEXT,
    "neurons": each(COUNT),
    "directions": TEXT,
    "directions_sha256": TEXT,
    "candidates": COUNT,
} | dict.fromkeys(VECTORS, each(NUMBER))


@dataclass(frozen=True, eq=False)
class LayerGrowth:
    """
    The neurons of one layer that grow by one operator. All tensors are float32 on the CPU.

    What an operator does to neuron `i` with `p = step · direction`, its function in `growth/operators.py` says. A
    direction is in coordinates `x̂ = [x; 1]` of the layer's input, or of a patch of a convolution's. Hidden neurons
    that are widened have a part `d + 1` for each of the `R` layers that have a row of theirs, as gate and up. Of heads
    the layer is the attention module, and directions have all rows of a head, layer by layer.

    Raises:
        ValueError: If there are duplicate neurons, a tensor of another length, or one that is not finite.
    """

    linear: str  # path of the layer in the model, of hidden neurons that of their first rows
    operator: str
    neurons: tuple[int, ...]  # (k,) distinct, as numbered before the event
    directions: Tensor  # (k, d + 1), or (k, R (d + 1)) of hidden neurons that are widened
    steps: Tensor  # (k,)
    gains: Tensor  # (k,) initial gains of the units; 0 where the operator has none
    predicted_gain: Tensor  # (k,) decrease of the loss
    eigenvalues: Tensor  # (k,)
    candidates: int  # neurons of the linear that could have been chosen

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ValueError(f"`operator` must be one of {', '.join(OPERATORS)}, got {self.operator!r}.")
        count = len(self.neurons)
        if count == 0:
            raise ValueError(f"`neurons` of {self.linear} is empty: leave the layer out of the plan.")
        if len(set(self.neurons)) < count:
            raise ValueError(f"`neurons` of {self.linear} has duplicates; a neuron grows once in an event.")
        for name in ("directions", *VECTORS):
            value = getattr(self, name)
            if len(value) != count or value.dim() != (2 if name == "directions" else 1):
                raise ValueError(
                    f"`{name}` of {self.linear} needs one entry per neuron, got shape {tuple(value.shape)}."
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"`{name}` of {self.linear} has values that are not finite.")

    @classmethod
    def by_hand(
        cls,
        model: GrowablePreTrainedModel,
        linear: str,
        operator: str,
        neurons: Sequence[int],
        *,
        directions: Tensor | None = None,
        steps: float | Tensor | None = None,
        gains: float | Tensor | None = None,
        seed: int = 0,
    ) -> "LayerGrowth":
        """
        The growth of given neurons, without a measurement of the curvature.

        Args:
            model ([`GrowablePreTrainedModel`]): The model that is to grow.
            linear (`str`): Path of the linear, such as `"deit.layers.0.mlp.fc1"`.
            operator (`str`): One of those of neurons.
            neurons (`Sequence[int]`): The neurons, distinct.
            directions (`Tensor`, *optional*):
                Shape `(k, d + 1)`, or `(k, R (d + 1))`; random unit vectors drawn from `seed` if `None`.
            steps (`float` or `Tensor`, *optional*): Defaults to a fifth of the root mean square of the rows' norms.
            gains (`float` or `Tensor`, *optional*): Defaults to 1 for opposed pairs, else 0.
            seed (`int`, *optional*, defaults to 0): Seed of the directions.

        Raises:
            ValueError: If the model has no such linear or neuron, or a tensor has a wrong shape.
        """
        if operator not in NEURON_OPERATORS:
            raise ValueError(f"`operator` must be one of {', '.join(NEURON_OPERATORS)}, got {operator!r}.")
        site, kind = find_site(model, linear), OPERATORS[operator]
        chosen = tuple(int(neuron) for neuron in neurons)
        site.check_neurons(chosen)
        layers: list[Any] = layers_of(model, site, kind)
        if directions is None:
            free = None if kind.deepens else [layer.bias is not None for layer in layers]
            directions = random_directions(len(chosen), kind.row_size(site), seed, free)
        if steps is None:
            norms = [float(layer.weight.detach().float().norm()) for layer in layers]
            steps = 0.2 * math.hypot(*norms) / math.sqrt(site.module.neurons)
        if gains is None:
            gains = kind.gain
        zeros = torch.zeros(len(chosen))
        return cls(
            linear=linear,
            operator=operator,
            neurons=chosen,
            directions=directions.detach().float().cpu(),
            steps=zeros + torch.as_tensor(steps, dtype=torch.float32),
            gains=zeros + torch.as_tensor(gains, dtype=torch.float32),
            predicted_gain=zeros,
            eigenvalues=zeros,
            candidates=len(chosen),
        )

    def of(self, places: Sequence[int]) -> "LayerGrowth":
        """The growth of some of the neurons, by their places."""
        parts = {name: getattr(self, name)[list(places)] for name in ("directions", *VECTORS)}
        return replace(self, neurons=tuple(self.neurons[place] for place in places), **parts)

    def to_dict(self) -> dict[str, Any]:
        """The growth, fit for JSON: directions as base64 of little-endian float32, with their SHA-256."""
        raw = np.ascontiguousarray(self.directions.numpy(), dtype="<f4").tobytes()
        return {
            "linear": self.linear,
            "operator": self.operator,
            "neurons": list(self.neurons),
            "directions": base64.b64encode(raw).decode("ascii"),
            "directions_sha256": hashlib.sha256(raw).hexdigest(),
            "candidates": self.candidates,
        } | {name: getattr(self, name).tolist() for name in VECTORS}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LayerGrowth":
        """
        The inverse of `to_dict`, bit for bit.

        Raises:
            ValueError: If a field is missing, or cannot be meant, or the hash of the directions does not fit.
        """
        check_fields(values, _FIELDS, "growths")
        where = f"`directions` of {values['linear']} in the growth plan"
        try:
            raw = base64.b64decode(values["directions"], validate=True)
        except ValueError as error:
            raise ValueError(f"{where} are not base64: {error}") from error
        if hashlib.sha256(raw).hexdigest() != values["directions_sha256"]:
            raise ValueError(f"{where} are damaged: their hash does not fit.")
        if not values["neurons"] or len(raw) == 0 or len(raw) % (4 * len(values["neurons"])):
            raise ValueError(f"{where} need one row for each of its `neurons`.")
        directions = torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32))
        return cls(
            linear=values["linear"],
            operator=values["operator"],
            neurons=tuple(values["neurons"]),
            directions=directions.view(len(values["neurons"]), -1),
            candidates=values["candidates"],
            **{name: torch.tensor(values[name], dtype=torch.float32) for name in VECTORS},
        )
