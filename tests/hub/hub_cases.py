"""Small models that have grown in different ways."""

import torch

from hf_saddle import (
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleViTConfig,
    SaddleViTForImageClassification,
)


SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "id2label": {0: "cat", 1: "dog", 2: "ship"},
    "label2id": {"cat": 0, "dog": 1, "ship": 2},
}
DEPTH = {1: {"skip_sizes": {"mlp.fc1": [6, 3], "attention.v_proj": [2]}}}
WIDTH = {0: {"intermediate_size": 48}}
MODELS = {
    "deit-ungrown": (SaddleDeiTConfig, SaddleDeiTForImageClassification, None),
    "deit-wider": (SaddleDeiTConfig, SaddleDeiTForImageClassification, WIDTH),
    "deit-deeper": (SaddleDeiTConfig, SaddleDeiTForImageClassification, DEPTH),
    "vit-ungrown": (SaddleViTConfig, SaddleViTForImageClassification, None),
    "vit-deeper-and-wider": (SaddleViTConfig, SaddleViTForImageClassification, WIDTH | DEPTH),
}


def build(name: str, seed: int = 0):
    """One of `MODELS` with random weights, none of them zero."""
    config_class, model_class, per_layer_config = MODELS[name]
    torch.manual_seed(seed)
    model = model_class(config_class(**SHAPE, per_layer_config=per_layer_config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model
