"""What a description of an architecture consists of: its kinds of blocks, their layers, neurons and heads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Neurons:
    """
    Hidden neurons of a block, whose outputs reach the network through linear readers only. Names are relative to it in
    a description, and those of a model where it has been found there.

    Attributes:
        rows (`tuple[str, ...]`): The layer that they are the rows of, or gate and up of `h = act(gate) * up`.
        readers (`tuple[str, ...]`): The layers that have a column, or input channel, for each of them.
        activation (`str`): Their activation.
        norms (`tuple[str, ...]`): Batch normalisations between rows and activation.
    """

    rows: tuple[str, ...]
    readers: tuple[str, ...]
    activation: str
    norms: tuple[str, ...] = ()

    def at(self, path: str) -> "Neurons":
        """The neurons of the block at a path, with the names that they have from there on."""
        rows, readers, norms = (
            tuple(f"{path}.{name}" for name in names) for names in (self.rows, self.readers, self.norms)
        )
        return Neurons(rows, readers, f"{path}.{self.activation}", norms)


@dataclass(frozen=True)
class Heads:
    """
    Attention heads of a block, each a group of neurons of several layers, that one layer reads. With grouped queries a
    key-value head and the query heads that it serves are one. Names are relative to the block in a description, and
    those of a model where it has been found there.

    Attributes:
        path (`str`): The attention module.
        rows (`tuple[str, ...]`): The layers that have rows of each head, that of values last.
        reader (`str`): The layer that has their columns.
        size (`str`): Attribute of the module: channels of a head.
        counts (`tuple[str, ...]`): Those that say how many there are.
        widths (`tuple[str, ...]`): Those that say how many channels all have together.
        parts (`tuple[int, ...]`):
            In how many equal parts the rows of each of these layers lie, as of one for queries, keys and values.
        table (`str`, *optional*): A parameter with an entry for each head on its last axis.
        shared (`bool`):
            Whether all modules of a list of blocks go by the same relative positions, so that they must have as many
            heads. The first of them has the table.
        fields (`tuple[str, ...]`):
            The fields of the stock config for numbers of heads, and of those that serve queries, where the channels of
            a head do not follow from them.
    """

    path: str
    rows: tuple[str, ...]
    reader: str
    size: str = "head_dim"
    counts: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    parts: tuple[int, ...] = (1, 1, 1)
    table: str | None = None
    shared: bool = False
    fields: tuple[str, ...] = ()

    def at(self, path: str) -> "Heads":
        """The heads of the block at a path, with the names that they have from there on."""
        rows, table = tuple(f"{path}.{name}" for name in self.rows), self.table and f"{path}.{self.table}"
        return replace(self, path=f"{path}.{self.path}", rows=rows, reader=f"{path}.{self.reader}", table=table)


@dataclass(frozen=True)
class Block:
    """
    A kind of block.

    Attributes:
        path (`str`): Path in the base model; `*` stands for any index.
        linears (`tuple[str, ...]`): Layers that skip branches may feed, in the order of the forward pass.
        neurons (`tuple[Neurons, ...]`): Neurons that may be split.
        outputs (`tuple[str, ...]`): Modules, or parameters, that all of what it adds to its input passes last.
        heads (`tuple[Heads, ...]`): Attention heads, by module.
    """

    path: str
    linears: tuple[str, ...]
    neurons: tuple[Neurons, ...] = ()
    outputs: tuple[str, ...] = ()
    heads: tuple[Heads, ...] = ()


Inside = tuple[tuple[str, ...], tuple[Neurons, ...], tuple[str, ...]]  # linears, neurons and outputs of a block


@dataclass(frozen=True)
class Family:
    """
    What the models of a type have in common. A block that a model class does not have, as an encoder alone has no
    decoder, is left out; within a block every name must be that of a module.

    Attributes:
        paths (`tuple[str, ...]`): Where its kinds of blocks are, in the order of the forward pass, see [`Block`].
        insides (`Callable`): Maps a config of the type to linears, neurons and outputs of each of these kinds.
        activation (`str`): The field of the config that names the activation of the neurons.
        widths (`tuple[str, ...]`):
            The field of the stock config that says how many neurons there are, for each of `paths`; none if they
            follow from others.
        counts (`tuple[str, ...]`):
            The field of the stock config that says how many blocks there are, for each of `paths`; of paths in stages
            it has a number for each.
        silence (`float`): The value of all parameters of a block's outputs at which it adds nothing to its input.
        audible (`Callable`): Why a block whose outputs are silent still changes what passes it; `None` if it does not.
        heads (`tuple[Heads, ...]` or `str`):
            The attention heads of all of these kinds, as far as they have their layers, or why heads cannot grow.
    """

    paths: tuple[str, ...]
    insides: Callable[[Any], tuple[Inside, ...]]
    activation: str = "hidden_act"
    widths: tuple[str, ...] = ("intermediate_size",)
    counts: tuple[str, ...] = ("num_hidden_layers",)
    silence: float = 0.0
    audible: Callable[[Any], str | None] = lambda config: None
    heads: tuple[Heads, ...] | str = "they have no attention heads"

    def blocks(self, config: Any) -> tuple[Block, ...]:
        """The kinds of blocks of a config of the type."""
        heads = () if isinstance(self.heads, str) else self.heads
        insides = zip(self.paths, self.insides(config), strict=True)
        return tuple(
            Block(path, *inside, tuple(kind for kind in heads if kind.reader in inside[0])) for path, inside in insides
        )
