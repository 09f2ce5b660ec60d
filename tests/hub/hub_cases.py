"""Small models that have grown in different ways."""

import torch

from hf_saddle import (
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleViTConfig,
    SaddleViTForImageClassification,
)
from hf_saddle.growth import GrowthPlan, LayerGrowth, grow_, record_


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


def grown(measured: bool = True):
    """A model that grew twice, in width and in nested depth; `measured` gives its events what a training would."""
    model = build("deit-ungrown")
    growths = [
        ("deit.layers.0.mlp.fc1", "split"),
        ("deit.layers.1.mlp.fc1", "zero_gain"),
        ("deit.layers.1.mlp.fc1.skip.linear", "zero_gain"),
    ]
    for step, planned in ((3, growths[:2]), (5, growths[2:])):
        plan = [LayerGrowth.by_hand(model, path, operator, [0, 1]) for path, operator in planned]
        event = grow_(model, GrowthPlan(tuple(plan), criterion="auto" if measured else None))
        if measured:
            event.step, event.epoch, event.loss_before, event.loss_after = step, step / 2, 1.25, 1.125
            record_(model, event)
    return model.eval()


def log() -> list[dict[str, float]]:
    """What `Trainer` logs in six steps with an evaluation after every second."""
    entries: list[dict[str, float]] = []
    for step in range(1, 7):
        entries.append({"step": step, "epoch": step / 2, "loss": 2 / step, "learning_rate": 1e-3})
        if step % 2 == 0:
            evaluation = {"eval_loss": 2.5 / step, "eval_accuracy": step / 8, "eval_runtime": 0.5}
            entries.append({"step": step, "epoch": step / 2} | evaluation)
    return [*entries, {"step": 6, "epoch": 3.0, "train_runtime": 12.5, "train_loss": 0.8}]
