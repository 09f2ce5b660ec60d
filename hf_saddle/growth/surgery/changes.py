"""What happens to the parameters of a model, so that its optimizer can follow."""

from dataclasses import dataclass, field

from torch import nn

from ...models.resizing import expect_, reinstate_, retire_
from .slices import Axis


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
    frozen: list[nn.Parameter] = field(default_factory=list)  # that were trained before

    def watch_(self) -> None:
        """Let optimizers that were not told of the changes raise, instead of leaving parameters at rest."""
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        now = {change.old: change.new for change in self.replaced}
        retire_([*now, *self.removed])
        expect_((change.new, now.get(change.sibling, change.sibling)) for change in self.added)

    def unwatch_(self) -> None:
        """The opposite, once they are undone."""
        reinstate_([*(change.old for change in self.replaced), *self.removed])
        for parameter in self.frozen:
            parameter.requires_grad_(True)
