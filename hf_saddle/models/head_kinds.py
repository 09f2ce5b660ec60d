"""Of what the attention heads of each architecture consist."""

from dataclasses import dataclass, replace
from typing import Any


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


def _heads(path: str, names: str = "q_proj k_proj v_proj o_proj", **attributes: Any) -> Heads:
    *rows, reader = (f"{path}.{name}" for name in names.split())
    return Heads(path, tuple(rows), reader, **attributes)


GROUPED = _heads("self_attn", fields=("num_key_value_heads", "num_attention_heads"))
VISION = _heads("attention", counts=("num_attention_heads",))
BERT, BERT_ACROSS = (
    Heads(
        f"{name}.self",
        (f"{name}.self.query", f"{name}.self.key", f"{name}.self.value"),
        f"{name}.output.dense",
        size="attention_head_size",
        counts=("num_attention_heads",),
        widths=("all_head_size",),
    )
    for name in ("attention", "crossattention")
)
_GPT2: dict[str, Any] = {"counts": ("num_heads",), "widths": ("split_size",)}
GPT2 = _heads("attn", "c_attn c_proj", parts=(3,), **_GPT2)
GPT2_ACROSS = _heads("crossattention", "q_attn c_attn c_proj", parts=(1, 2), **_GPT2)
CLIP, CLIP_ACROSS = (
    _heads(name, "q_proj k_proj v_proj out_proj", counts=("num_heads",)) for name in ("self_attn", "encoder_attn")
)
DISTILBERT = _heads("attention", "q_lin k_lin v_lin out_lin", size="attention_head_size", counts=("n_heads",))
SWIN = replace(VISION, table="attention.relative_position_bias.relative_position_bias_table")
# The first cross-attention gives the others positions, too, which are 0.
T5, T5_ACROSS = (
    _heads(
        name,
        "q k v o",
        size="key_value_proj_dim",
        counts=("n_heads",),
        widths=("inner_dim",),
        shared=True,
        fields=("num_heads",),
    )
    for name in ("layer.0.SelfAttention", "layer.1.EncDecAttention")
)
T5 = replace(T5, table="layer.0.SelfAttention.relative_attention_bias.weight")
