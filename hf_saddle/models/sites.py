"""Where a model can grow: its growable layers by name, and each with its module."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .descriptions import Neurons
from .families import FAMILIES
from .growable import Growable, growable_in


FC1 = "mlp.fc1"
LINEARS = (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
    FC1,
    "mlp.fc2",
)

# From a layer to that of its branch.
_INNER = ".skip.linear"
_BLOCKS = sorted({path for family in FAMILIES.values() for path in family.paths}, key=len, reverse=True)
_PATH = re.compile(
    rf"(?:\w+\.)??((?:{'|'.join(re.escape(path).replace(re.escape('*'), '[0-9]{1,6}') for path in _BLOCKS)}))"
    rf"\.((?!skip\.)\w+(?:\.(?!skip\.)\w+)*)((?:{re.escape(_INNER)})*)",
    re.ASCII,
)


@dataclass(frozen=True)
class Site:
    """
    A growable layer in its place.

    Attributes:
        path (`str`): Path in the model, such as `"model.layers.0.mlp.gate_proj.skip.linear"`.
        root (`str`): Path in the base model of the layer at the root of its branches: `"layers.0.mlp.gate_proj"`.
        block (`int`): Number of its block among all blocks of the model, in the order of the forward pass.
        linear (`str`): Name in the block of the layer at the root, `"mlp.gate_proj"`.
        depth (`int`): Number of branches that it is nested in; 0 for the layer at the root.
        module (`Growable`): The layer; of one that a tuner has wrapped, the one inside of the wrapper.
        neurons ([`Neurons`], *optional*): Those that it is the first layer of rows of, with paths in the model.
    """

    path: str
    root: str
    block: int
    linear: str
    depth: int
    module: Any
    neurons: Neurons | None

    @property
    def nested(self) -> bool:
        """Whether its neurons are the units of a branch."""
        return self.depth > 0

    def check_neurons(self, neurons: Iterable[int]) -> None:
        """Raise a `ValueError` for a neuron that the layer does not have."""
        size = self.module.neurons
        wrong = [neuron for neuron in neurons if not 0 <= neuron < size]
        if wrong:
            raise ValueError(f"`neurons` of {self.path} must be in [0, {size}), got {wrong[:5]}.")


@dataclass(frozen=True)
class Place:
    """
    What the path of a growable layer says by itself, where no model is at hand.

    Attributes:
        path (`str`): Path in the model.
        block (`str`): Path in the base model of its block, such as `"layers.0"`.
        linear (`str`): Name in the block of the layer at the root of its branches.
        depth (`int`): Number of branches that it is nested in.
    """

    path: str
    block: str
    linear: str
    depth: int

    @classmethod
    def parse(cls, path: str) -> "Place":
        """
        The place that a path names.

        Raises:
            ValueError: If no growable layer can be there.
        """
        found = _PATH.fullmatch(path)
        if found is None:
            raise ValueError(f"{path!r} names no growable linear.")
        return cls(path, found[1], found[2], len(found[3]) // len(_INNER))

    @property
    def root(self) -> str:
        """Path in the base model of the layer at the root of its branches."""
        return f"{self.block}.{self.linear}"

    def within(self, block: str) -> str:
        """Path in the model of the same layer of another block."""
        start = self.path.index(f"{self.block}.")
        return f"{self.path[:start]}{block}{self.path[start + len(self.block) :]}"

    @property
    def nested(self) -> bool:
        """Whether its neurons are the units of a branch."""
        return self.depth > 0


def root_path(layer: int, linear: str) -> str:
    """Path in the encoder of a linear of one of its layers."""
    return f"layers.{layer}.{linear}"


def inner_path(path: str) -> str:
    """Path of the layer in the branch of a layer."""
    return path + _INNER


def linear_at(path: str, module: nn.Module) -> Growable:
    """The growable layer in a module that should be one, or wrap one."""
    linear = growable_in(module)
    if linear is None:
        raise ValueError(
            f"{path} is a {type(module).__name__}, which has taken the place of a growable linear, as quantisers do. "
            "Such a model computes and saves, but has no shapes and does not grow: use the model as it was before."
        )
    return linear
