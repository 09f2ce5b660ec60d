"""Configuration of the growable distilled DeiT (class and distillation token)."""

from transformers import DeiTConfig

from .configuration_saddle import SaddleConfig


class SaddleDeiTConfig(SaddleConfig, DeiTConfig):
    r"""
    Configuration of a [`SaddleDeiTModel`]. It has all fields of [`~transformers.DeiTConfig`] and those below.

    Args:
        head_dim (`int`, *optional*, defaults to `hidden_size // num_attention_heads`):
            Width of one attention head; `q`, `k` and `v` have `num_attention_heads * head_dim` neurons.
        attention_scaling (`float`, *optional*, defaults to `head_dim**-0.5`):
            Factor on the attention scores before the softmax.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth while training: the probability, for each sample, that a residual branch of the last
            layer is left out; it rises linearly from 0 in the first layer.
        skip_sizes (`dict[str, list[int]]`, *optional*):
            Depth: for a linear (`"mlp.fc1"`, `"attention.v_proj"`, …) the widths of its nested skip branches,
            outermost first. Usually set per layer, in `per_layer_config`.
        skip_unit (`str`, *optional*, defaults to `"gain"`):
            Kind of the branches' units: `"gain"`, `"residual_pair"` or `"residual"` (merged pairs).
        per_layer_config (`dict[int, dict]`, *optional*):
            Shapes of the layers that differ: `{1: {"intermediate_size": 80, "skip_sizes": {"mlp.fc1": [4, 2]}}}`.

    Example:

    ```python
    >>> from hf_saddle import SaddleDeiTConfig

    >>> config = SaddleDeiTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    >>> config.per_layer_config = {1: {"intermediate_size": 160, "skip_sizes": {"mlp.fc1": [4, 2]}}}
    >>> [config.per_layer_config[i].intermediate_size for i in range(2)]
    [128, 160]
    ```"""

    model_type = "saddle_deit"
    __eq__ = SaddleConfig.__eq__


__all__ = ["SaddleDeiTConfig"]
