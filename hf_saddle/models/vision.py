"""What the growable ViT and DeiT have beyond stock: free head sizes, stochastic depth, and an older form of config."""

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import DeiTConfig, ViTConfig
from transformers import initialization as init

from .config_fields import MAX_PARAMETERS, is_number
from .configuration_saddle import SaddleConfig, is_refusal, sides
from .shape_checks import check_layers
from .sites import FC1, LINEARS, root_path


class VisionConfig(SaddleConfig):
    """
    Fields and checks that [`SaddleDeiTConfig`] and [`SaddleViTConfig`] share.

    `per_layer_config`, the form in which older versions kept the shapes of single layers, can still be passed,
    assigned and read: `config.per_layer_config[i].intermediate_size` and `config.per_layer_config[i].skip_sizes`.
    """

    head_dim: int | None = None
    attention_scaling: float | None = None
    drop_path_rate: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        layers = kwargs.pop("per_layer_config", None)
        super().__post_init__(**kwargs)
        if layers is not None and not is_refusal(layers):
            self._take_layers(layers, self.widths or {}, self.skip_sizes or {})
        self._check_parameter_number()

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "drop_path_rate" and not (is_number(value) and 0 <= value < 1):
            raise ValueError(f"`drop_path_rate` must be a number in [0, 1), got {value!r}.")
        if key == "attention_scaling" and not (value is None or (isinstance(value, float) and 0 < value < math.inf)):
            raise ValueError(f"`attention_scaling` must be a positive float, got {value!r}.")
        if key == "skip_sizes" and isinstance(value, Mapping) and value and set(value) <= set(LINEARS):
            # An older form: branches that every layer has.
            layers = range(self.num_hidden_layers)
            value = {root_path(layer, name): sizes for layer in layers for name, sizes in value.items()}
        super().__setattr__(key, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in [`SaddleConfig`]; files of older versions, whose branches have the activation of the model, too."""
        if "skip_activation" not in config_dict and "skip_unit" in config_dict:
            config_dict = config_dict | {"skip_activation": config_dict.get("hidden_act", cls.hidden_act)}
        return super().from_dict(config_dict, **kwargs)

    @property
    def per_layer_config(self) -> Any:
        layers = []
        for layer in range(self.num_hidden_layers):
            sizes = {name: (self.skip_sizes or {}).get(root_path(layer, name)) for name in LINEARS}
            branches = {name: list(widths) for name, widths in sizes.items() if widths}
            width = (self.widths or {}).get(root_path(layer, FC1), self.intermediate_size)
            layers.append(copy.copy(self))
            layers[-1].__dict__.update(intermediate_size=width, skip_sizes=branches or None, widths=None)
        return layers

    @per_layer_config.setter
    def per_layer_config(self, value: Mapping[Any, Mapping[str, Any]] | None) -> None:
        self._take_layers(value or {}, {}, {})

    def _take_layers(
        self, layers: Mapping[Any, Mapping[str, Any]], widths: dict[str, int], skip_sizes: dict[str, list[int]]
    ) -> None:
        """Take the shapes of a `per_layer_config`, and others by path for the layers that it does not name."""
        check_layers("per_layer_config", layers, self.num_hidden_layers)
        widths, skip_sizes = dict(widths), dict(skip_sizes)
        for index, layer in layers.items():
            width = layer.get("intermediate_size", self.intermediate_size)
            if width != self.intermediate_size:
                widths[root_path(int(index), FC1)] = width
            for name in LINEARS if "skip_sizes" in layer else ():
                skip_sizes.pop(root_path(int(index), name), None)
            for name, sizes in (layer.get("skip_sizes") or {}).items():
                skip_sizes[root_path(int(index), name)] = sizes
        self.widths, self.skip_sizes = widths or None, skip_sizes or None

    def _check_parameter_number(self) -> None:
        """Refuse a model that could not be meant: a lower bound of its parameters, from the config alone."""
        attention_width = self.num_attention_heads * self.head_dim
        total = 0
        for layer in self.per_layer_config:
            total += self.hidden_size * (4 * attention_width + 2 * layer.intermediate_size)
            for linear, widths in (layer.skip_sizes or {}).items():
                fan_in = {"mlp.fc2": layer.intermediate_size, "attention.o_proj": attention_width}
                total += sum(widths) * fan_in.get(linear, self.hidden_size)
        patch = sides(self.patch_size)
        positions = math.prod(image // side for image, side in zip(sides(self.image_size), patch, strict=True))
        if positions == 0:
            raise ValueError(f"`patch_size` {self.patch_size} is larger than `image_size` {self.image_size}.")
        total += self.hidden_size * (positions + self.num_channels * math.prod(patch) + self.num_labels)
        total += self.hidden_size * (self.pooler_output_size or 0)
        if total > MAX_PARAMETERS:
            raise ValueError(
                f"The config asks for more than {MAX_PARAMETERS:.1e} parameters. Check `hidden_size`, "
                "`num_hidden_layers`, `intermediate_size`, `head_dim`, `image_size`, `widths` and `skip_sizes`, or "
                "the `per_layer_config` of an older file."
            )


class SaddleDeiTConfig(VisionConfig, DeiTConfig):
    r"""
    Configuration of a growable distilled DeiT (class and distillation token). It has all fields of
    [`~transformers.DeiTConfig`] and of [`SaddleConfig`], and those below.

    Args:
        head_dim (`int`, *optional*, defaults to `hidden_size // num_attention_heads`):
            Width of one attention head; `q`, `k` and `v` have `num_attention_heads * head_dim` neurons.
        attention_scaling (`float`, *optional*, defaults to `head_dim**-0.5`):
            Factor on the attention scores before the softmax.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth while training: the probability, for each sample, that a residual branch of the last
            layer is left out; it rises linearly from 0 in the first layer.

    Example:

    ```python
    >>> from hf_saddle import SaddleDeiTConfig

    >>> config = SaddleDeiTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    >>> config.widths, config.skip_sizes = {"layers.1.mlp.fc1": 160}, {"layers.1.mlp.fc1": [4, 2]}
    >>> [config.per_layer_config[i].intermediate_size for i in range(2)]
    [128, 160]
    ```"""

    model_type = "saddle_deit"
    __eq__ = SaddleConfig.__eq__


class SaddleViTConfig(VisionConfig, ViTConfig):
    r"""
    Configuration of a growable plain ViT, which is also the non-distilled DeiT (`facebook/deit-*-patch16-224`). It has
    all fields of [`~transformers.ViTConfig`] and those of [`SaddleDeiTConfig`].

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


SaddleDeiTConfig.register_for_auto_class()
SaddleViTConfig.register_for_auto_class()

# Of checkpoints with two heads, a class with one continues with that of the class token.
STOCK_KEYS = {"DeiTForImageClassification": {r"^cls_classifier\.": "classifier."}}


class BranchDropout(nn.Dropout):
    """
    Dropout at the end of a residual branch: of single values, and of the whole branch (stochastic depth, drop-path).

    Stock layers apply their `dropout` exactly where both branches end, so that they need no other forward pass.

    Args:
        p (`float`): Probability that a value is dropped.
        drop_path (`float`): Probability that the branch of a sample is dropped.
    """

    def __init__(self, p: float, drop_path: float):
        super().__init__(p)
        self.drop_path = drop_path

    def forward(self, branch: Tensor) -> Tensor:
        """Drop parts of `branch`, of shape `(batch, …)`, while training; what is kept is scaled to the same mean."""
        branch = super().forward(branch)
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        kept = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(keep)
        return branch * (kept / keep)

    def extra_repr(self) -> str:
        """As in `nn.Dropout`, with the second probability."""
        return f"{super().extra_repr()}, drop_path={self.drop_path:g}"


def finish_vision_(base: Any, config: SaddleConfig) -> None:
    """Give a ViT or DeiT that a stock constructor has built what its config asks for beyond stock."""
    if not isinstance(config, VisionConfig):
        return
    last = max(config.num_hidden_layers - 1, 1)
    for index, layer in enumerate(base.layers):
        if config.attention_scaling is not None:
            layer.attention.scaling = config.attention_scaling
        layer.dropout = BranchDropout(config.hidden_dropout_prob, config.drop_path_rate * index / last)


def init_tokens_(module: nn.Module, config: SaddleConfig) -> None:
    """Let the tokens and positions of a DeiT start from a truncated normal, as in its paper; stock has zeros."""
    if not isinstance(config, SaddleDeiTConfig):
        return
    from transformers.models.deit.modeling_deit import DeiTEmbeddings  # other families do not need it

    if isinstance(module, DeiTEmbeddings):
        for token in (module.cls_token, module.distillation_token, module.position_embeddings):
            init.trunc_normal_(token, std=config.initializer_range)
