"""Growable plain ViT: stock ViT's forward passes over layers of growable linears."""

from torch import nn
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.vit.modeling_vit import ViTAttention, ViTEmbeddings, ViTLayer, ViTPooler, ViTPreTrainedModel

from .branch_guard import guarded
from .building import build_attention_, build_layer_
from .configuration_saddle_vit import SaddleViTConfig
from .modeling_saddle import GrowablePreTrainedModel


class SaddleViTAttention(ViTAttention):
    """Stock attention whose four projections are growable."""

    def __init__(self, config: SaddleViTConfig, layer_idx: int):
        nn.Module.__init__(self)
        build_attention_(self, config, layer_idx)


class SaddleViTLayer(ViTLayer):
    """Stock encoder layer with the shapes of `config.per_layer_config[layer_idx]`."""

    def __init__(self, config: SaddleViTConfig, layer_idx: int):
        GradientCheckpointingLayer.__init__(self)
        self.attention = SaddleViTAttention(config, layer_idx)
        build_layer_(self, config, layer_idx)


class SaddleViTPreTrainedModel(GrowablePreTrainedModel, ViTPreTrainedModel):
    """Base of the growable ViT models."""

    config: SaddleViTConfig
    base_model_prefix = "vit"
    _no_split_modules = ["ViTEmbeddings", "SaddleViTLayer"]
    _can_record_outputs = {"hidden_states": SaddleViTLayer, "attentions": SaddleViTAttention}


class SaddleViTModel(SaddleViTPreTrainedModel, ViTModel):
    """The bare growable ViT encoder. Arguments as in [`~transformers.ViTModel`]."""

    stock_class = ViTModel
    forward = guarded(ViTModel.forward)

    def __init__(self, config: SaddleViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False):
        PreTrainedModel.__init__(self, config)
        self.embeddings = ViTEmbeddings(config, use_mask_token=use_mask_token)
        self.layers = nn.ModuleList([SaddleViTLayer(config, i) for i in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = ViTPooler(config) if add_pooling_layer else None
        self.post_init()


class SaddleViTForImageClassification(SaddleViTPreTrainedModel, ViTForImageClassification):
    """Growable ViT with a linear head on the class token. Forward as in the stock class."""

    stock_class = ViTForImageClassification

    def __init__(self, config: SaddleViTConfig):
        PreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.vit = SaddleViTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()


__all__ = ["SaddleViTForImageClassification", "SaddleViTModel", "SaddleViTPreTrainedModel"]
