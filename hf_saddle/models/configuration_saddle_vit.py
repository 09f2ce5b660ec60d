"""Configuration of the growable plain ViT, which is also the non-distilled DeiT (`facebook/deit-*-patch16-224`)."""

from typing import Any

from transformers import ViTConfig

from .configuration_saddle import SaddleConfig


class SaddleViTConfig(SaddleConfig, ViTConfig):
    r"""
    Configuration of a [`SaddleViTModel`]. It has all fields of [`~transformers.ViTConfig`] and those of
    [`SaddleDeiTConfig`]: `head_dim`, `attention_scaling`, `drop_path_rate`, `skip_sizes`, `skip_unit` and
    `per_layer_config`.

    Example:

    ```python
    >>> from hf_saddle import SaddleViTConfig

    >>> config = SaddleViTConfig.reduced_deit_small(num_labels=100)
    >>> config.intermediate_size, config.head_dim
    (768, 32)
    ```"""

    model_type = "saddle_vit"
    __eq__ = SaddleConfig.__eq__

    @classmethod
    def reduced_deit_small(cls, **kwargs: Any) -> "SaddleViTConfig":
        """
        The start of arXiv 2402.12418: DeiT-S with q, k, v and fc1 halved, 11,071,204 parameters at 100 classes.

        The heads have 32 channels, while the softmax scale stays that of 64.
        """
        shapes = {
            "hidden_size": 384,
            "num_attention_heads": 6,
            "head_dim": 32,
            "attention_scaling": 64**-0.5,
            "intermediate_size": 768,
            "layer_norm_eps": 1e-6,
        }
        return cls(**shapes, **kwargs)


__all__ = ["SaddleViTConfig"]
