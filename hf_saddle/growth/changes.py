"""What happens to the parameters of a model, so that its optimizer can follow."""

from dataclasses import dataclass, field

from torch import nn

from .drafts import Axis


@dataclass(frozen=True, eq=False)
class Replaced:
    """
    A parameter that took the place of another; `axes` tells for every dimension where its slices come from. `merged`
    is a second one whose values were added to it.
    """

    name: str
    old: nn.Parameter
    new: nn.Parameter
    axes: tuple[Axis, ...]
    merged: nn.Parameter | None = None


@dataclass(frozen=True, eq=False)
class Added:
    """A parameter without predecessor, which joins the group of the old parameter `sibling`."""

    name: str
    new: nn.Parameter
    sibling: nn.Parameter


@dataclass
class Changes:
    """What happened to the parameters of a model."""

    replaced: list[Replaced] = field(default_factory=list)
    added: list[Added] = field(default_factory=list)
    removed: list[nn.Parameter] = field(default_factory=list)
