"""What plans and histories say of new blocks, and the shapes and configs that follow from it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...models.blocks import Orders, new_places, orders_after, reorder_config_, reordered, split_path
from ...models.config_fields import is_number
from ...models.shapes import Shapes
from ...models.sites import Place
from .fields import LIST, NUMBER, TEXT, Check, check_fields


# How a new block comes to be. All but the last leave what the model computes unchanged.
WAYS = ("copy", "identity", "average", "stack")
# What plans and histories of before do not have.
_LATER = {"scale": 0.0}
BLOCK_OPERATORS = tuple(f"block_{way}" for way in WAYS)
_FIELDS: dict[str, Check] = {"after": TEXT, "how": TEXT, "predicted_gain": NUMBER, "scale": NUMBER}


@dataclass(frozen=True)
class NewBlock:
    """
    A block that is to be inserted.

    Attributes:
        after (`str`): Path in the base model of the block that it comes after, as numbered before the event.
        how (`str`): One of `WAYS`: a copy of that block whose outputs are silent, a block with fresh weights and
            silent outputs (`"identity"`), the mean of both neighbours with silent outputs (`"average"`), or a plain
            copy (`"stack"`).
        predicted_gain (`float`, *optional*, defaults to 0.0): Decrease of the loss that was estimated, in nats.
        scale (`float`, *optional*, defaults to 0.0): The share of its outputs that it keeps in place of silence.
    """

    after: str
    how: str
    predicted_gain: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        if self.how not in WAYS:
            raise ValueError(f"`how` of a new block must be one of {', '.join(WAYS)}, got {self.how!r}.")
        if not is_number(self.scale) or not 0 <= self.scale <= 1:
            raise ValueError(f"`scale` of a new block must be a number in [0, 1], got {self.scale!r}.")
        if self.how == "stack" and self.scale:
            raise ValueError(
                f"A plain copy keeps its outputs as they are, got `scale={self.scale}`: use `how='copy'` with `scale`."
            )

    @property
    def share(self) -> float:
        """What its outputs are multiplied by."""
        return 1.0 if self.how == "stack" else self.scale

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON, in plans and in histories."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "NewBlock":
        """
        The inverse of `to_dict`.

        Raises:
            ValueError: If it is damaged.
        """
        if isinstance(values, Mapping):
            values = _LATER | dict(values)
        check_fields(values, _FIELDS, "blocks")
        return cls(**values)


def block_texts(blocks: Iterable[Any]) -> list[str]:
    """What people are told of inserted blocks, or of their records, as `+1 block after layers.3`."""
    counted = Counter(each.after if isinstance(each, NewBlock) else each["after"] for each in blocks)
    return [f"+{number} block{'s' if number > 1 else ''} after {after}" for after, number in counted.items()]


def new_blocks(records: Any) -> tuple[NewBlock, ...]:
    """The new blocks of a list of records; errors as in [`NewBlock.from_dict`]."""
    LIST(records, "blocks")
    return tuple(map(NewBlock.from_dict, records))


def places_of(orders: Orders, blocks: Sequence[NewBlock]) -> dict[str, NewBlock]:
    """Paths of the new blocks once they are inserted, each with what was asked for."""
    waiting: dict[str, list[NewBlock]] = {}
    for block in blocks:
        waiting.setdefault(block.after, []).append(block)
    return {path: waiting[old].pop(0) for path, old in new_places(orders)}


def bare_of(orders: Orders, blocks: Sequence[NewBlock]) -> list[str]:
    """Paths of the new blocks that have no branches."""
    return [path for path, block in places_of(orders, blocks).items() if block.how == "identity"]


def _orders(shapes: Shapes, blocks: Sequence[NewBlock]) -> dict[str, list[int]]:
    there = dict.fromkeys(Place.parse(root).block for root in shapes.widths)
    for block in blocks:
        if block.after not in there:
            raise ValueError(f"There is no block {block.after!r} for a new one to come after; there are {[*there]}.")
    return orders_after(there, (block.after for block in blocks))


def shapes_with(shapes: Shapes, blocks: Sequence[NewBlock]) -> Shapes:
    """
    The shapes of a model with new blocks, which have the widths of those that they come after, and their branches
    unless their weights are fresh.

    Raises:
        ValueError: If a block comes after one that is not there.
    """
    orders = _orders(shapes, blocks)
    return Shapes(
        reordered(shapes.widths, orders),
        reordered(shapes.skip_sizes, orders, bare_of(orders, blocks)),
        reordered(shapes.heads, orders),
    )


def config_with_(config: Any, shapes: Shapes, blocks: Sequence[NewBlock]) -> None:
    """Let the config of a model of some shapes ask for new blocks."""
    orders = _orders(shapes, blocks)
    reorder_config_(config, orders, bare_of(orders, blocks))


def blocks_with(paths: Iterable[str], shapes: Shapes, blocks: Sequence[NewBlock]) -> list[str]:
    """Where blocks are once new ones are inserted, by their paths before, and those new ones."""
    orders = _orders(shapes, blocks)
    found = []
    for path in paths:
        stack, index = split_path(path)
        found.append(f"{stack}.{orders[stack].index(index)}" if stack in orders else path)
    return [*found, *places_of(orders, blocks)]
