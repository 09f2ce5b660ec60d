"""Where a model can grow: its growable linears by name, and each with its module."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .growable import GrowableLinear


FC1, FC2 = "mlp.fc1", "mlp.fc2"
LINEARS = (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
    FC1,
    FC2,
)
# Linears whose neurons are hidden ones, and those that read what they answer.
READERS = {FC1: (FC2,)}

# From a linear to that of its branch.
_INNER = ".skip.linear"
_PATH = re.compile(rf"(?:\w+\.)?layers\.([0-9]{{1,6}})\.({'|'.join(map(re.escape, LINEARS))})((?:\.skip\.linear)*)")


@dataclass(frozen=True)
class Place:
    """
    Where a growable linear is, by name.

    Attributes:
        layer (`int`): Index of its encoder layer.
        linear (`str`): Name in the layer, one of `LINEARS`, of the linear that is at the root of its branches.
        depth (`int`): Number of branches that it is nested in; 0 for the linear at the root.
        path (`str`): Path in the model, such as `"deit.layers.3.mlp.fc1.skip.linear"`.
    """

    layer: int
    linear: str
    depth: int
    path: str

    @classmethod
    def parse(cls, path: str) -> "Place":
        """
        The place that a path names.

        Raises:
            ValueError: If no growable linear can be there.
        """
        found = _PATH.fullmatch(path)
        if found is None:
            raise ValueError(f"{path!r} names no growable linear.")
        return cls(int(found[1]), found[2], len(found[3]) // len(_INNER), path)

    @property
    def root(self) -> str:
        """Path of the linear at the root of its branches, in the encoder."""
        return root_path(self.layer, self.linear)

    @property
    def nested(self) -> bool:
        """Whether its neurons are the units of a branch."""
        return self.depth > 0

    @property
    def readers(self) -> tuple[str, ...]:
        """Linears of the same layer that read what its neurons answer; none where that is not theirs alone."""
        return () if self.nested else READERS.get(self.linear, ())

    @property
    def branch(self) -> "Place":
        """The place of the linear in its branch."""
        return Place(self.layer, self.linear, self.depth + 1, inner_path(self.path))


@dataclass(frozen=True)
class Site(Place):
    """
    A growable linear in its place.

    Attributes:
        module (`GrowableLinear`): The linear; of one that a tuner has wrapped, the one inside of the wrapper.
    """

    module: "GrowableLinear"


def root_path(layer: int, linear: str) -> str:
    """Path in the encoder of a linear of one of its layers."""
    return f"layers.{layer}.{linear}"


def inner_path(path: str) -> str:
    """Path of the linear in the branch of a linear."""
    return path + _INNER


__all__ = ["FC1", "FC2", "LINEARS", "READERS", "Place", "Site", "inner_path", "root_path"]
