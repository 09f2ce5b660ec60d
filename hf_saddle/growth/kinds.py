"""Which kinds of growth a config names: of neurons, of attention heads, of whole blocks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .operators import (
    DEPTH_OPERATORS,
    HEAD_OPERATORS,
    NEURON_OPERATORS,
    OPERATORS,
    WIDTH_OPERATORS,
    default_operator,
)
from .records.block_records import BLOCK_OPERATORS


if TYPE_CHECKING:
    from .config import GrowthConfig

AUTO = "auto"
ANY = "any"
NAMES = (AUTO, ANY, *OPERATORS, *BLOCK_OPERATORS)


@dataclass(frozen=True)
class Kinds:
    """
    The operators of a config, by what grows.

    Attributes:
        neurons (`tuple[str, ...]`): Of neurons, or `("auto",)` for those that fit the criterion; at most one that
            widens and one that deepens.
        heads (`tuple[str, ...]`): Of attention heads.
        blocks (`str`, *optional*): How whole blocks are inserted, such as `"copy"`.
        named (`bool`): Whether each was named, so that a model which cannot grow so is refused; otherwise these are
            all that there are, and a model grows by those that it can.
    """

    neurons: tuple[str, ...]
    heads: tuple[str, ...]
    blocks: str | None
    named: bool = True

    @property
    def only_blocks(self) -> bool:
        """Whether nothing but whole blocks is inserted."""
        return self.blocks is not None and not self.neurons and not self.heads

    @property
    def several(self) -> bool:
        """Whether heads, or several kinds, grow, so that all are columns of one regression."""
        return bool(self.heads) or (self.blocks is not None and bool(self.neurons))

    @property
    def ways(self) -> tuple[str, ...]:
        """How heads come, as [`score_heads`] names it."""
        return tuple(name.partition("_")[0] for name in self.heads)

    def ranking(self) -> tuple[str, ...]:
        """The criteria that rank neurons for these operators."""
        deepens = any(name in (AUTO, *DEPTH_OPERATORS) for name in self.neurons)
        widens = any(name in (AUTO, *WIDTH_OPERATORS) for name in self.neurons)
        return ("width",) * widens + ("depth",) * deepens

    def operator_for(self, criterion: str, kind: str | None) -> str | None:
        """The operator for neurons that a criterion ranks, in a model with branches of a kind; `None` if none."""
        if self.neurons == (AUTO,):
            return default_operator(criterion, kind)
        if len(self.neurons) == 1:
            return self.neurons[0]
        names = WIDTH_OPERATORS if criterion == "width" else DEPTH_OPERATORS
        return next((name for name in self.neurons if name in names), None)


def names_of(operator: Any) -> list[str]:
    """
    The names in the field `operator` of a config, one or several.

    Raises:
        ValueError: If they are not names of operators, or cannot go together.
    """
    names = [operator] if isinstance(operator, str) else operator
    if not isinstance(names, (list, tuple)) or not names or not all(name in NAMES for name in names):
        raise ValueError(f"`operator` must be one of {', '.join(NAMES)}, or a list of them, got {operator!r}.")
    if len(set(names)) < len(names):
        raise ValueError(f"`operator={operator!r}` names one twice.")
    if ANY in names and len(names) > 1:
        raise ValueError(f"`operator={operator!r}`: 'any' stands for all kinds, and for itself.")
    neurons = _among(names, (AUTO, *NEURON_OPERATORS))
    if AUTO in neurons and len(neurons) > 1:
        raise ValueError(f"`operator={operator!r}`: 'auto' stands for all operators of neurons, name it or those.")
    for what, some in (("widens neurons", WIDTH_OPERATORS), ("deepens", DEPTH_OPERATORS), ("blocks", BLOCK_OPERATORS)):
        twice = _among(names, some)
        if len(twice) > 1:
            raise ValueError(
                f"`operator={operator!r}` has two ways for the same, {' and '.join(twice)}, which nothing measured "
                f"tells apart ({what}): name one of them."
            )
    return list(names)


def kinds_of(operator: str | list[str]) -> Kinds:
    """What checked names mean."""
    names = [operator] if isinstance(operator, str) else operator
    if names == [ANY]:
        return Kinds((AUTO,), HEAD_OPERATORS, "copy", named=False)
    blocks = _among(names, BLOCK_OPERATORS)
    how = blocks[0].removeprefix("block_") if blocks else None
    return Kinds(_among(names, (AUTO, *NEURON_OPERATORS)), _among(names, HEAD_OPERATORS), how)


def check_kinds(config: "GrowthConfig") -> None:
    """
    Verify that the other options of a config go with its operators.

    Raises:
        ValueError: If one does not; the message names it and the remedy.
    """
    kinds, told = config.kinds, f"`operator={config.operator!r}`"
    if kinds.neurons and config.criterion in ("width", "depth") and config.criterion not in kinds.ranking():
        does, other, instead = ("widens", "width", "zero_gain")
        if config.criterion == "width":
            does, other, instead = ("deepens", "depth", "split")
        raise ValueError(
            f"{told} {does}, but `criterion={config.criterion!r}` ranks for {config.criterion}: use "
            f"`criterion={other!r}`, or `operator={instead!r}`."
        )
    together = [name for name in ("selection", "budget_unit") if getattr(config, name) in ("pursuit", "seconds")]
    if (together or kinds.several) and not config.pursues:
        what = f"`{together[0]}={getattr(config, together[0])!r}`" if together else told
        raise ValueError(
            f"{what} chooses splits and zero-gain units, and heads and blocks, by curvature and pursuit, not "
            f"`criterion={config.criterion!r}` with {told} and `selection={config.selection!r}`: use "
            "`selection='gain'` with an operator of neurons or of blocks alone and a budget of parameters, or leave "
            "it out."
        )
    if config.freeze and not kinds.only_blocks:
        raise ValueError(f"`freeze=True` goes with an operator of blocks alone: {', '.join(BLOCK_OPERATORS)}.")
    given = {"criterion": config.criterion != "auto", "linears": config.linears is not None}
    # Blocks alone may be chosen whether they gain or not.
    chosen = config.selection == "pursuit" or (config.selection == "gain" and not kinds.only_blocks)
    given |= {"selection": chosen, "quotas": config.quotas}
    wrong = [f"`{name}`" for name, is_given in given.items() if is_given]
    if wrong and not kinds.neurons:
        raise ValueError(
            f"{told} lets no neurons grow, and heads and blocks are ranked by their own gain: leave out "
            f"{', '.join(wrong)}. `layers` says in or behind which blocks."
        )
    if config.quotas and kinds.several:
        raise ValueError(f"`quotas=True` shares the budget between linears, and not between the kinds of {told}.")


def _among(names: Iterable[str], some: Iterable[str]) -> tuple[str, ...]:
    known = set(some)
    return tuple(name for name in names if name in known)
