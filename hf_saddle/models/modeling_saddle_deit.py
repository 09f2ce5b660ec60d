"""Growable distilled DeiT: stock DeiT's forward passes over layers of growable linears."""

import torch
from torch import nn
from transformers import DeiTForImageClassification, DeiTForImageClassificationWithTeacher, DeiTModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.deit.modeling_deit import (
    DeiTAttention,
    DeiTEmbeddings,
    DeiTLayer,
    DeiTPooler,
    DeiTPreTrainedModel,
)

from .branch_guard import guarded
from .building import build_attention_, build_layer_
from .configuration_saddle_deit import SaddleDeiTConfig
from .modeling_saddle import GrowablePreTrainedModel


class SaddleDeiTAttention(DeiTAttention):
    """Stock attention whose four projections are growable."""

    def __init__(self, config: SaddleDeiTConfig, layer_idx: int):
        nn.Module.__init__(self)
        build_attention_(self, config, layer_idx)


class SaddleDeiTLayer(DeiTLayer):
    """Stock encoder layer with the shapes of `config.per_layer_config[layer_idx]`."""

    def __init__(self, config: SaddleDeiTConfig, layer_idx: int):
        GradientCheckpointingLayer.__init__(self)
        self.attention = SaddleDeiTAttention(config, layer_idx)
        build_layer_(self, config, layer_idx)


class SaddleDeiTPreTrainedModel(GrowablePreTrainedModel, DeiTPreTrainedModel):
    """Base of the growable DeiT models. Tokens and positions start from a truncated normal, as in the DeiT paper."""

    config: SaddleDeiTConfig
    base_model_prefix = "deit"
    _no_split_modules = ["DeiTEmbeddings", "SaddleDeiTLayer"]
    _can_record_outputs = {"hidden_states": SaddleDeiTLayer, "attentions": SaddleDeiTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeiTEmbeddings):
            for token in (module.cls_token, module.distillation_token, module.position_embeddings):
                init.trunc_normal_(token, std=self.config.initializer_range)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)


class SaddleDeiTModel(SaddleDeiTPreTrainedModel, DeiTModel):
    """The bare growable DeiT encoder. Arguments as in [`~transformers.DeiTModel`]."""

    stock_class = DeiTModel
    forward = guarded(DeiTModel.forward)

    def __init__(self, config: SaddleDeiTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False):
        PreTrainedModel.__init__(self, config)
        self.embeddings = DeiTEmbeddings(config, use_mask_token=use_mask_token)
        self.layers = nn.ModuleList([SaddleDeiTLayer(config, i) for i in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = DeiTPooler(config) if add_pooling_layer else None
        self.post_init()


class SaddleDeiTForImageClassification(SaddleDeiTPreTrainedModel, DeiTForImageClassification):
    """Growable DeiT with one linear head on the class token. Forward as in the stock class."""

    stock_class = DeiTForImageClassification
    # A distilled checkpoint has two heads; this class continues with the one of the class token.
    stock_key_mapping = {r"^cls_classifier\.": "classifier."}

    def __init__(self, config: SaddleDeiTConfig):
        PreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.deit = SaddleDeiTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()


class SaddleDeiTForImageClassificationWithTeacher(SaddleDeiTPreTrainedModel, DeiTForImageClassificationWithTeacher):
    """Growable DeiT with a head on the class token and one on the distillation token. Forward as in stock."""

    stock_class = DeiTForImageClassificationWithTeacher

    def __init__(self, config: SaddleDeiTConfig):
        PreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.deit = SaddleDeiTModel(config, add_pooling_layer=False)
        for head in ("cls_classifier", "distillation_classifier"):
            linear = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
            self.add_module(head, linear)
        self.post_init()


__all__ = [
    "SaddleDeiTForImageClassification",
    "SaddleDeiTForImageClassificationWithTeacher",
    "SaddleDeiTModel",
    "SaddleDeiTPreTrainedModel",
]
