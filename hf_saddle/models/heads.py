"""The attention heads of a model: where they are, how many, and what of their module follows their number."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import split_path
from .descriptions import Heads
from .families import blocks_in
from .growable import growable_in
from .layouts import layout_of
from .parameters import follow_
from .resizing import retire_
from .sites import linear_at


@dataclass(frozen=True)
class Attention:
    """
    An attention module in its place.

    Attributes:
        path (`str`): Path in the model, `"model.layers.0.self_attn"`.
        root (`str`): Path in the base model, `"layers.0.self_attn"`.
        block (`int`): Number of its block among all blocks of the model.
        module (`nn.Module`): The module.
        heads ([`Heads`]): What its heads consist of, with paths in the model.
        stack (`str`, *optional*):
            Where the modules are that must have as many heads, `"encoder.block.*.layer.0.SelfAttention"`; `None` if
            their number is its own.
    """

    path: str
    root: str
    block: int
    module: Any
    heads: Heads
    stack: str | None

    @property
    def channels(self) -> int:
        """Channels of a head; with grouped queries of its keys, or values."""
        return int(getattr(self.module, self.heads.size))

    def number(self, rows: int) -> int:
        """How many heads there are where the layer of values has this many rows."""
        return rows // (self.channels * self.heads.parts[-1])

    def fit_(self, number: int) -> None:
        """Let the attributes of the module say that it has a number of heads."""
        for name in self.heads.counts:
            setattr(self.module, name, number)
        for name in self.heads.widths:
            setattr(self.module, name, number * self.channels)

    def of(self, name: str) -> str:
        """The name in the base model of something that is named from the model on."""
        return name.removeprefix(self.path.removesuffix(self.root))


def attentions_in(base: nn.Module, prefix: str = "") -> Iterator[Attention]:
    """
    Yield the attention modules of a base model whose heads can grow, in the order of the forward pass; `prefix`
    precedes its paths in the model, as `"bert."`.
    """
    for number, (block_path, block) in enumerate(blocks_in(base, base.config)):
        stack, index = split_path(block_path)
        for kind in block.heads:
            root, heads = f"{block_path}.{kind.path}", kind.at(f"{prefix}{block_path}")
            if kind.shared and index:
                heads = replace(heads, table=None)
            of_stack = f"{stack}.*.{kind.path}" if kind.shared else None
            yield Attention(f"{prefix}{root}", root, number, base.get_submodule(root), heads, of_stack)


def rows_of(heads: Tensor, unit: int, number: int, parts: int) -> Tensor:
    """
    Numbers of the rows of some heads, int64, head by head, in a layer that has a `number` of them with `unit` rows in
    each of its `parts`.
    """
    first = torch.arange(parts) * number + heads[:, None]
    return (first[..., None] * unit + torch.arange(unit)).flatten()


def stacks_in(attentions: Iterable[Attention]) -> dict[str, list[str]]:
    """Paths of attention modules, those together that must have as many heads."""
    stacks: dict[str, list[str]] = {}
    for attention in attentions:
        stacks.setdefault(attention.stack or attention.path, []).append(attention.path)
    return stacks


def check_stacks(base: nn.Module, numbers: Mapping[str, int]) -> None:
    """Raise a `ValueError` if modules that must have as many heads, by path in the base model, do not."""
    for stack, paths in stacks_in(attentions_in(base)).items():
        different = {numbers[path] for path in paths}
        if len(different) > 1:
            raise ValueError(
                f"All of {stack} must have as many heads, since the first gives the others its relative positions, "
                f"which have an entry for each head; got {sorted(different)}."
            )


def heads_of(base: nn.Module) -> dict[str, int]:
    """How many heads the attention modules of a base model have, by path in it; of stock models, too."""
    found = {}
    for attention in attentions_in(base):
        values = base.get_submodule(attention.heads.rows[-1])
        layer = growable_in(values) or values
        found[attention.root] = attention.number(int(getattr(layer, layout_of(layer).outputs)))
    return found


def fit_heads_(base: nn.Module) -> None:
    """Let the attention modules of a base model say, and their tables have, as many heads as their layers have."""
    numbers = heads_of(base)
    for attention in attentions_in(base):
        resize_table_(attention, base, numbers[attention.root])
        attention.fit_(numbers[attention.root])


def heads_in_tensors(base: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, int]:
    """The same of a checkpoint for a model, with what precedes the base model's names in it."""
    found = heads_of(base)
    for attention in attentions_in(base):
        name = attention.heads.rows[-1]
        weight, rows = tensors.get(f"{prefix}{name}.weight"), linear_at(name, base.get_submodule(name)).layout.rows
        if weight is not None and weight.dim() > rows:
            found[attention.root] = attention.number(weight.shape[rows])
    return found


@torch.no_grad()
def resize_table_(attention: Attention, base: nn.Module, number: int) -> None:
    """Give the table of an attention module, if it has one, entries of a number of heads, with values to be filled."""
    if attention.heads.table is None:
        return
    owner, _, name = attention.of(attention.heads.table).rpartition(".")
    module = base.get_submodule(owner)
    old = module._parameters[name]
    assert old is not None
    if old.shape[-1] != number:
        module._parameters[name] = follow_(nn.Parameter(old.new_zeros(*old.shape[:-1], number)), old)
        fit_table_(module, number)
        retire_([old])


def fit_table_(module: nn.Module, number: int) -> None:
    """Let the attributes of a module that has a table say that it has entries of a number of heads."""
    if isinstance(module, nn.Embedding):
        module.embedding_dim = number
