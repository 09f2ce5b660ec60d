"""Attention heads as they will be: their rows, columns and entries in tables, drafted without touching the modules."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ...models.blocks import split_path
from ...models.heads import Attention, heads_of, rows_of, stacks_in
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.sites import linear_at
from ..operators import HEAD_OPERATORS, OPERATORS
from ..records.layer_growth import LayerGrowth
from ..records.plan import GrowthPlan
from .drafts import LinearDraft
from .entries import EntriesDraft


def find_attention(model: GrowablePreTrainedModel, path: str) -> Attention:
    """
    The attention module at a path in the model.

    Raises:
        ValueError: If there is none whose heads can grow.
    """
    known = {attention.path: attention for attention in model.attentions()}
    if path not in known:
        raise ValueError(
            f"The model has no attention {path!r} whose heads can grow; those are {', '.join(known) or 'none'}."
        )
    return known[path]


def stacks_of(model: GrowablePreTrainedModel, paths: Iterable[str]) -> list[tuple[str, ...]]:
    """
    Attention modules at some paths in the model, those together that must have as many heads.

    Raises:
        ValueError: If modules must have as many heads of which some are missing, or there is no such module.
    """
    asked = {find_attention(model, path).path for path in paths}
    found = []
    for stack, members in stacks_in(model.attentions()).items():
        if asked & {*members} not in (set(), {*members}):
            raise ValueError(_together(stack, members))
        found += [tuple(members)] if asked & {*members} else []
    return found


def _together(stack: str, paths: Iterable[str]) -> str:
    return (
        f"The first of {stack} gives the others its relative positions, with an entry for each head: let the same "
        f"heads grow in all of {', '.join(paths)} at once."
    )


class HeadsDraft:
    """
    The heads of an attention module, as drafts of its layers.

    Args:
        attention ([`Attention`]): The module.
        number (`int`): Its heads.
        drafts (`Mapping[str, LinearDraft]`): Drafts of its layers, by path in the model.
        table ([`EntriesDraft`], *optional*): Of the parameter with an entry for each head.
    """

    def __init__(
        self, attention: Attention, number: int, drafts: Mapping[str, LinearDraft], table: EntriesDraft | None = None
    ):
        self.number = number
        self.attention = attention
        self.parts = attention.heads.parts
        self.layers = [drafts[row] for row in attention.heads.rows]
        self.reader = drafts[attention.heads.reader]
        self.table = table
        # Rows of a head in each part of a layer, and its columns.
        both = zip(self.layers, self.parts, strict=True)
        self.units = [layer.neurons // (number * parts) for layer, parts in both]
        self.columns = self.reader.weight.shape[self.reader.layout.columns] // number

    @classmethod
    def of(cls, model: GrowablePreTrainedModel, attention: Attention) -> "HeadsDraft":
        """The draft of an attention module as it is, to be looked at."""
        names = (*attention.heads.rows, attention.heads.reader)
        drafts = {name: LinearDraft.of(name, linear_at(name, model.get_submodule(name))) for name in names}
        return cls(attention, heads_of(model.base_model)[attention.root], drafts)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """For each layer with rows of a head, how many rows, and how many entries each has: weights and bias."""
        return [
            (parts * unit, layer.weight.shape[layer.layout.columns] + 1)
            for parts, unit, layer in zip(self.parts, self.units, self.layers, strict=True)
        ]

    def affine(self, heads: Tensor) -> Tensor:
        """
        Rows of heads in all layers, one after the other, shape `(k, R)`; biases that there are not are 0.

        Args:
            heads (`Tensor`): The heads, shape `(k,)`.
        """
        both = zip(self.layers, self._rows(heads), strict=True)
        return torch.cat([layer.affine(rows).view(len(heads), -1) for layer, rows in both], 1)

    def _rows(self, heads: Tensor) -> Iterator[Tensor]:
        """Rows of heads in each layer."""
        for unit, parts in zip(self.units, self.parts, strict=True):
            yield rows_of(heads, unit, self.number, parts)

    def copy_neurons_(self, heads: Tensor, rows: Tensor) -> None:
        """
        Replace heads by two copies, each of which counts half.

        Args:
            heads (`Tensor`): The heads, distinct.
            rows (`Tensor`): Those of originals and then of copies, as `affine` has them.
        """
        for layer, held, own in zip(self.layers, self._rows(heads), self.by_layer(rows), strict=True):
            layer.copy_rows_(held, own)
        self.reader.halve_columns_((heads[:, None] * self.columns + torch.arange(self.columns)).flatten())
        if self.table is not None:
            self.table.copy_(heads)
        self._settle_(len(heads))

    def append_neurons_(self, rows: Tensor) -> None:
        """Append heads that nothing reads yet, with rows as `affine` has them, and no preference for any position."""
        for layer, own in zip(self.layers, self.by_layer(rows), strict=True):
            layer.append_rows_(own)
        self.reader.append_columns_(len(rows) * self.columns)
        if self.table is not None:
            self.table.append_(len(rows))
        self._settle_(len(rows))

    def by_layer(self, rows: Tensor) -> Iterator[Tensor]:
        """Rows of heads, as `affine` has them, by layer."""
        parts = torch.split(rows, [count * size for count, size in self.sizes], 1)
        for part, (_, size) in zip(parts, self.sizes, strict=True):
            yield part.reshape(-1, size)

    def _settle_(self, count: int) -> None:
        """Move rows that were appended for new heads to the end of their own part of the layer."""
        for layer, unit, parts in zip(self.layers, self.units, self.parts, strict=True):
            if parts == 1:
                continue
            old, new = (torch.arange(parts * n * unit) for n in (self.number, count))
            by_part = new.view(count, parts, -1).transpose(0, 1).reshape(parts, -1)
            order = torch.cat([old.view(parts, -1), len(old) + by_part], 1).flatten()
            for name, parameter in layer.parameters.items():
                parameter.reorder_(order, layer.layout.rows if name.endswith("weight") else 0)
            if layer.branch is not None:
                layer.branch.target = torch.argsort(order)[layer.branch.target]
        self.number += count


def draft_heads_(
    model: GrowablePreTrainedModel, growths: Iterable[LayerGrowth], drafts: Mapping[str, LinearDraft]
) -> None:
    """
    Let heads grow in drafts of their layers, after all else that a plan does to those.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        growths (`Iterable[LayerGrowth]`): The growths of heads, checked.
        drafts (`Mapping[str, LinearDraft]`): Drafts of the layers of the attention modules, by path in the model.
    """
    made: dict[str, HeadsDraft] = {}
    numbers = heads_of(model.base_model)
    # New heads first, which have the numbers that they are named by.
    for growth in sorted(growths, key=lambda growth: OPERATORS[growth.operator].copies):
        if growth.linear not in made:
            attention = find_attention(model, growth.linear)
            path, table = attention.heads.table, None
            if path is not None:
                owner, _, name = path.rpartition(".")
                table = EntriesDraft(owner, model.get_submodule(owner), -1, [name])
                drafts[attention.heads.rows[-1]].beside.append(table)
            made[growth.linear] = HeadsDraft(attention, numbers[attention.root], drafts, table)
        draft = made[growth.linear]
        rows = (growth.directions * growth.steps[:, None]).to(draft.reader.weight.device)
        OPERATORS[growth.operator].draft_(
            draft, torch.tensor(growth.neurons), rows, growth.gains, str(model.config.skip_activation)
        )


def check_stacks_grow(model: GrowablePreTrainedModel, plan: GrowthPlan) -> None:
    """
    Verify that attention modules which must have as many heads grow together, by the same heads.

    Raises:
        ValueError: If a plan names some of them only; the message names all.
    """
    grown: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    for growth in plan.growths:
        if growth.operator in HEAD_OPERATORS:
            grown.setdefault(growth.linear, set()).add((growth.operator, growth.neurons))
    if not grown:
        return
    for stack, paths in stacks_in(model.attentions()).items():
        if len({frozenset(grown.get(path, ())) for path in paths}) > 1:
            raise ValueError(_together(stack, paths))
        longer = [block.after for block in plan.blocks if split_path(block.after)[0] == stack.partition(".*")[0]]
        if longer and paths[0] in grown:
            raise ValueError(
                f"A new block after {longer[0]} would have as many heads as before, and all of {stack} must have as "
                "many: let heads grow in an event of their own."
            )


def check_heads(model: GrowablePreTrainedModel, growth: LayerGrowth) -> None:
    """
    Verify that a growth of heads fits a model.

    Raises:
        ValueError: If it does not fit; the message names the attention module.
    """
    attention = find_attention(model, growth.linear)
    draft = HeadsDraft.of(model, attention)
    heads, new = growth.neurons, tuple(range(draft.number, draft.number + len(growth.neurons)))
    copies = OPERATORS[growth.operator].copies
    if not copies and heads != new:
        raise ValueError(f"New heads of {growth.linear} get the numbers {new}, got {heads}.")
    if copies and not all(0 <= head < draft.number for head in heads):
        raise ValueError(f"`neurons` of {growth.linear} must be heads in [0, {draft.number}), got {heads}.")
    size = sum(count * entries for count, entries in draft.sizes)
    if growth.directions.shape[1] != size:
        raise ValueError(
            f"`directions` of {growth.linear} must have {size} columns (inputs and bias of all rows of a head), got "
            f"{growth.directions.shape[1]}."
        )
    for layer, part in zip(draft.layers, draft.by_layer(growth.directions), strict=True):
        if "bias" not in layer.parameters and bool(part[:, -1].any()):
            raise ValueError(
                f"`directions` of {growth.linear} change a bias, which {layer.path} does not have: the last entry of "
                "each of its rows must be 0."
            )
