"""Encoder layers of growable linears, in the place of those that a stock constructor makes."""

from typing import Any

from torch import nn

from .branch_dropout import BranchDropout
from .configuration_saddle import SaddleConfig
from .growable import GrowableLinear, GrowableMLP


def build_layer_(layer: Any, config: SaddleConfig, layer_idx: int) -> None:
    """Give a stock encoder layer, built without sub-modules, its norms, growable attention linears and MLP."""
    shapes = config.per_layer_config[layer_idx]
    skip_sizes = shapes.skip_sizes or {}
    layer.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    layer.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    layer.mlp = GrowableMLP(
        config.hidden_size, shapes.intermediate_size, config.hidden_act, skip_sizes, config.skip_unit
    )
    last = max(config.num_hidden_layers - 1, 1)
    layer.dropout = BranchDropout(config.hidden_dropout_prob, config.drop_path_rate * layer_idx / last)


def build_attention_(attention: Any, config: SaddleConfig, layer_idx: int) -> None:
    """Give a stock attention, built without sub-modules, growable linears; it keeps the global config."""
    skip_sizes = config.per_layer_config[layer_idx].skip_sizes or {}
    width = config.num_attention_heads * config.head_dim
    attention.config = config
    attention.num_attention_heads = config.num_attention_heads
    attention.head_dim = config.head_dim
    attention.attention_dropout = config.attention_probs_dropout_prob
    attention.scaling = attention.head_dim**-0.5 if config.attention_scaling is None else config.attention_scaling
    attention.is_causal = False

    def linear(name: str, fan_in: int, fan_out: int, bias: bool) -> GrowableLinear:
        sizes = skip_sizes.get(f"attention.{name}", ())
        options = {"skip_unit": config.skip_unit, "activation": config.hidden_act}
        return GrowableLinear(fan_in, fan_out, bias, skip_sizes=sizes, **options)

    attention.q_proj = linear("q_proj", config.hidden_size, width, config.qkv_bias)
    attention.k_proj = linear("k_proj", config.hidden_size, width, config.qkv_bias)
    attention.v_proj = linear("v_proj", config.hidden_size, width, config.qkv_bias)
    attention.o_proj = linear("o_proj", width, config.hidden_size, True)


__all__ = ["build_attention_", "build_layer_"]
