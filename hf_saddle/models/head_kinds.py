"""Of what the attention heads of each architecture consist."""

from dataclasses import replace
from typing import Any

from .descriptions import Heads


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
