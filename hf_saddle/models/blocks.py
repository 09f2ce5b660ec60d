"""Lists of blocks that become longer or shorter: in configs, in sizes by path, and in the names of checkpoints."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from .families import FAMILIES, blocks_in, family_of


Value = TypeVar("Value")
# For a list of blocks, by its path in the base model, the block that stands at each place, by its old index. One that
# is named again is a new block made like it.
Orders = Mapping[str, Sequence[int]]
_PATHS = sorted({path for family in FAMILIES.values() for path in family.paths}, key=len, reverse=True)
_IN_BLOCK = [
    re.compile(rf"((?:\w+\.)*?{re.escape(path[:-2])})\.([0-9]+)\.(.+)".replace(re.escape("*"), "[0-9]+"), re.ASCII)
    for path in _PATHS
]


def split_path(path: str) -> tuple[str, int]:
    """List and index of a block: of `"encoder.layer.3"` these are `"encoder.layer"` and 3."""
    stack, _, index = path.rpartition(".")
    return stack, int(index)


def block_paths(base: nn.Module, config: Any) -> list[str]:
    """Paths of all blocks of a base model, in the order of the forward pass."""
    return [path for path, _ in blocks_in(base, config)]


def orders_after(blocks: Iterable[str], after: Iterable[str]) -> dict[str, list[int]]:
    """
    The orders of the lists that have new blocks.

    Args:
        blocks (`Iterable[str]`): Paths of the blocks that are there.
        after (`Iterable[str]`): For each new block that which it comes after; those after the same one follow it.
    """
    new = Counter(after)
    orders: dict[str, list[int]] = {}
    for path in blocks:
        stack, index = split_path(path)
        orders.setdefault(stack, []).extend([index] * (1 + new[path]))
    longer = {split_path(path)[0] for path in new}
    return {stack: order for stack, order in orders.items() if stack in longer}


def new_places(orders: Orders) -> Iterator[tuple[str, str]]:
    """Paths of the new blocks, each with the old path of the block that it is made like."""
    for stack, order in orders.items():
        for index, old in enumerate(order):
            if old in order[:index]:
                yield f"{stack}.{index}", f"{stack}.{old}"


def reordered(sizes: Mapping[str, Value], orders: Orders, bare: Iterable[str] = ()) -> dict[str, Value]:
    """What is known by path in the base model, by the paths that follow; of `bare` blocks it is left out."""
    found: dict[str, Value] = {}
    done = set()
    for path, size in sizes.items():
        stack = next((stack for stack in orders if path.startswith(f"{stack}.")), None)
        if stack is None:
            found[path] = size
        elif stack not in done:
            done.add(stack)
            for index, old in enumerate(orders[stack]):
                before, after = f"{stack}.{old}.", f"{stack}.{index}."
                named = {name.removeprefix(before): own for name, own in sizes.items() if name.startswith(before)}
                found |= {f"{after}{name}": own for name, own in named.items() if after[:-1] not in set(bare)}
    return found


def reorder_config_(config: Any, orders: Orders, bare: Iterable[str] = ()) -> None:
    """
    Let a config ask for other numbers of blocks: what it says of single ones goes with them.

    Args:
        config ([`SaddleConfig`]): The config.
        orders (`Mapping[str, Sequence[int]]`): The orders of lists.
        bare (`Iterable[str]`, *optional*): Paths of new blocks that have no branches.
    """
    fields = (config.widths, config.skip_sizes, config.heads)
    widths, sizes, heads = (None if held is None else dict(held) for held in fields)
    config.widths = config.skip_sizes = config.heads = None
    for stack, order in orders.items():
        field, stage = _count_field(config.model_type, stack)
        if stage is not None:
            counts = list(getattr(config, field))
            counts[stage] = len(order)
            setattr(config, field, counts)
            continue
        number = getattr(config, field)
        setattr(config, field, len(order))
        known = vars(config)
        if isinstance(known.get("layer_types"), list) and len(known["layer_types"]) == number:
            config.layer_types = [known["layer_types"][old] for old in order]
        if len(known.get("stage_names") or ()) == number + 1:
            # Of backbones: every block may give a feature, which is now that behind the blocks made like it.
            last = {old + 1: place + 1 for place, old in enumerate(order)}
            named = sorted({last.get(index, min(index, len(order))) for index in config.out_indices})
            config.stage_names = ["stem", *(f"stage{index}" for index in range(1, len(order) + 1))]
            config.set_output_features_output_indices(None, named)
    config.widths = reordered(widths, orders) if widths else None
    config.heads = reordered(heads, orders) if heads else None
    config.skip_sizes = (reordered(sizes, orders, bare) or None) if sizes else None


def _count_field(model_type: str, stack: str) -> tuple[str, int | None]:
    """The field of a config that counts the blocks of a list, and the place in it where it has one for each stage."""
    family = family_of(model_type)
    for path, field in zip(family.paths, family.counts, strict=True):
        pattern = re.escape(path).removesuffix(re.escape(".*")).replace(re.escape("*"), "([0-9]+)")
        found = re.fullmatch(pattern, stack, re.ASCII)
        if found is not None:
            return field, int(found[1]) if found.groups() else None
    raise ValueError(f"{stack!r} is no list of blocks of a {model_type}.")


def orders_of_tensors(tensors: Iterable[str], prefix: str, blocks: Sequence[str]) -> dict[str, list[int]]:
    """
    The orders that let lists of blocks have as many as a checkpoint: the first ones stay, and new ones are made like
    the last. Lists that it has nothing of, or as many of, are left out.
    """
    lengths = Counter(split_path(path)[0] for path in blocks)
    found: dict[str, set[int]] = {stack: set() for stack in lengths}
    for name in tensors:
        for stack, indices in found.items():
            start = f"{prefix}{stack}."
            index = name[len(start) :].partition(".")[0] if name.startswith(start) else ""
            if index.isascii() and index.isdecimal():
                indices.add(int(index))
    orders = {}
    for stack, indices in found.items():
        number = 1 + max(indices, default=-1)
        if number and number != lengths[stack] and indices == set(range(number)):
            orders[stack] = [min(index, lengths[stack] - 1) for index in range(number)]
    return orders


def orders_of_config(config: Any, blocks: Sequence[str]) -> dict[str, list[int]]:
    """The orders that let lists of blocks have as many as a config says: the first ones stay."""
    orders = {}
    for stack, number in Counter(split_path(path)[0] for path in blocks).items():
        field, stage = _count_field(config.model_type, stack)
        wanted = getattr(config, field) if stage is None else getattr(config, field)[stage]
        if wanted != number:
            orders[stack] = [min(index, number - 1) for index in range(wanted)]
    return orders


def block_siblings(name: str) -> list[str]:
    """Parameters of the blocks before that which a parameter is in, nearest first, that it may be trained like."""
    for pattern in _IN_BLOCK:
        found = pattern.fullmatch(name)
        if found is not None:
            return [f"{found[1]}.{earlier}.{found[3]}" for earlier in range(int(found[2]) - 1, -1, -1)]
    return []


def check_kept(config: Any, orders: Orders) -> None:
    """
    Verify that the number of blocks says all about new ones, where only tensors are known.

    Raises:
        ValueError: If blocks of the config differ in kind (`layer_types`), or give features.
    """
    for stack, order in orders.items():
        kinds = vars(config).get("layer_types")
        number = len({*order})
        features = vars(config).get("stage_names") or ()
        known = not isinstance(kinds, list) or len({*kinds}) <= 1
        if known and (len(features) <= number or config.out_indices == [len(features) - 1]):
            continue
        raise ValueError(
            f"The checkpoint has {len(order)} blocks in {stack}, not {number}, and which kind each of them is "
            "(`layer_types`, or features of a backbone) only its config says. Make the model by `from_pretrained` of "
            "the checkpoint's folder, and load the state then."
        )


__all__ = [
    "Orders",
    "block_paths",
    "block_siblings",
    "check_kept",
    "new_places",
    "orders_after",
    "orders_of_config",
    "orders_of_tensors",
    "reorder_config_",
    "reordered",
    "split_path",
]
