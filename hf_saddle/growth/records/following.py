"""Whether an event can follow what was before it in a history: shapes, kind of units, parameters and MACs."""

from itertools import zip_longest
from typing import Any

from transformers.utils import logging

from ...models.shapes import Shapes
from ...models.sites import Place
from ..operators import OPERATORS
from .block_records import shapes_with
from .event import GrowthEvent, ModelSize


logger = logging.get_logger(__name__)


def check_follows(event: GrowthEvent, where: str, before: ModelSize) -> None:
    """
    Verify that an event, which is called `where` in messages, starts from a model of a size.

    Raises:
        ValueError: If it does not. Parameters that nothing accounts for are only told in the log: a head is exchanged
            without an event.
    """
    try:
        shapes = shapes_with(before.shapes, event.new_blocks)
    except ValueError as error:
        raise ValueError(f"The growth history is damaged: {where} cannot follow. {error}") from error
    check_shapes_follow(shapes, event.layers, event.shapes, where)
    kind = "residual" if event.is_merge else before.skip_unit
    if before.shapes.skip_sizes and event.skip_unit != kind:
        raise ValueError(
            f"The growth history is damaged: `skip_unit` of {where} is {event.skip_unit!r}, but the branches before "
            f"it lead to {kind!r}."
        )
    if event.parameters_before != before.parameters:
        logger.warning_once(
            f"The growth history: {where} starts at {event.parameters_before} parameters, but what was before left "
            f"{before.parameters}. A part that does not grow was exchanged in between, such as the head, or the "
            "history was changed."
        )
    if event.macs_before != before.macs and not event.is_merge:
        raise ValueError(
            f"The growth history is damaged: `macs_before` of {where} is {event.macs_before}, but what was before "
            f"left {before.macs}. An event is missing, or was changed."
        )


def check_shapes_follow(before: Shapes, records: list[dict[str, Any]], after: Shapes, where: str) -> None:
    """
    Raise a `ValueError` if the shapes after an event are not those before it with the neurons that its records name.

    A split neuron takes the units that feed it along, so that branches of a layer whose neurons were copied, or of
    another one in its block with rows of the same neurons, may gain more than the records name.
    """
    if before.widths.keys() != after.widths.keys():
        raise ValueError(f"The growth history is damaged: {where} has other layers than the model before it.")
    gained: dict[tuple[str, int], int] = {}
    copied: dict[str, int] = {}  # by root, the depth from which neurons were copied
    widened: set[str] = set()  # blocks whose hidden neurons were copied
    heads: dict[str, int] = {}
    for record in records:
        place, operator = Place.parse(record["linear"]), OPERATORS[record["operator"]]
        if operator.of == "heads":
            heads[place.root] = heads.get(place.root, 0) + record["chosen"]
            widened |= {place.block} if operator.copies else set()
            continue
        if not operator.deepens and not place.nested and place.root not in before.widths:
            raise ValueError(f"The growth history is damaged: {record['linear']} cannot be widened, as {where} says.")
        sizes = before.sizes(place.root)
        size = sizes[place.depth] if place.depth < len(sizes) else 0
        if (size or place.nested) and max(record["neurons"]) >= size:
            raise ValueError(
                f"The growth history is damaged: {where} names neuron {max(record['neurons'])} of {record['linear']}, "
                f"which had {size}."
            )
        key = (place.root, place.depth + operator.deepens)
        gained[key] = gained.get(key, 0) + operator.units * record["chosen"]
        if not operator.deepens:
            copied[place.root] = min(place.depth, copied.get(place.root, place.depth))
            widened |= set() if place.nested else {place.block}
    _check_heads_follow(before, heads, after, where)
    for root in dict.fromkeys((*before.widths, *before.skip_sizes, *after.skip_sizes)):
        sizes, sizes_after = before.sizes(root), after.sizes(root)
        shared = root not in before.widths and any(root.startswith(f"{block}.") for block in widened)
        for level, (size, size_after) in enumerate(zip_longest(sizes, sizes_after, fillvalue=0)):
            wanted = size + gained.pop((root, level), 0)
            more_is_fine = level > (0 if shared else copied.get(root, level))
            if size_after < size:
                raise ValueError(f"The growth history is damaged: {root} shrinks in {where}.")
            if size_after < wanted or (size_after > wanted and not more_is_fine):
                raise ValueError(
                    f"The growth history is damaged: {root} has {size_after} neurons after {where} (branch {level} of "
                    f"it), but its records lead from {size} to {wanted}. An event is missing, or was changed."
                )
    if gained:
        raise ValueError(f"The growth history is damaged: the shapes of {where} lack the branch {min(gained)}.")


def _check_heads_follow(before: Shapes, gained: dict[str, int], after: Shapes, where: str) -> None:
    """The same of attention heads, whose number shapes do not have where it is that of stock."""
    for root in {*before.heads, *gained, *after.heads}:
        was, more, now = before.heads.get(root), gained.get(root, 0), after.heads.get(root)
        if was is not None and now is not None:
            follows = now == was + more
        else:
            follows = more > 0 if now is None else more > 0 and now > more
        if not follows:
            raise ValueError(
                f"The growth history is damaged: {root} has {now or 'the heads of stock'} after {where}, but "
                f"{was or 'those of stock'} before it, and its records name {more} more."
            )
