"""Tiny growable models of every class, ungrown and grown, with no weight left at a special value."""

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn

from hf_saddle.models import (
    Growable,
    GrowablePreTrainedModel,
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleDeiTModel,
    SaddleViTForImageClassification,
    SaddleViTModel,
    SkipBranch,
)


SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 30,
    "patch_size": 2,
    "num_labels": 3,
}
# Every linear, nesting to depth 3, and branches with more units than neurons (so that targets are shared).
GROWN = {
    0: {
        "intermediate_size": 45,
        "skip_sizes": {"mlp.fc1": [6, 3, 2], "attention.v_proj": [40], "attention.o_proj": [3, 4]},
    },
    1: {"skip_sizes": {"mlp.fc2": [40, 2], "attention.q_proj": [2], "attention.k_proj": [5]}},
}
UNITS = ("gain", "residual_pair", "residual")
CLASSES = (
    SaddleDeiTModel,
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleViTModel,
    SaddleViTForImageClassification,
)
CLASSIFIERS = (SaddleDeiTForImageClassification, SaddleViTForImageClassification)

# transformers 5.23 renamed the method and deprecated the old name.
RENAMED = Version(transformers.__version__) >= Version("5.23")
CHECKPOINTING = "activation_checkpointing_enable" if RENAMED else "gradient_checkpointing_enable"

every_class = pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)
every_classifier = pytest.mark.parametrize("model_class", CLASSIFIERS, ids=lambda c: c.__name__)
every_unit = pytest.mark.parametrize("unit", UNITS)
every_growth = pytest.mark.parametrize("grown", [None, GROWN], ids=["ungrown", "grown"])


def branched(linear: Growable, sizes: list[int], unit: str = "gain", activation: str = "gelu") -> Growable:
    """A layer with nested branches, outermost first."""
    linear.skip = SkipBranch(linear, sizes, unit, activation)
    return linear


def randomize_(model: nn.Module, seed: int = 0, scale: float = 0.1) -> None:
    """Add noise to every parameter and draw the targets, so that no gain, bias or target has a special value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * scale)
        for name, branch in model.named_modules():
            if isinstance(branch, SkipBranch):
                branch.target.random_(0, branch.neurons, generator=generator)
                branch.check_targets_(name)


def build(
    model_class: type[GrowablePreTrainedModel] = SaddleDeiTForImageClassification,
    grown: dict[int, dict[str, Any]] | None = None,
    seed: int = 0,
    **config: Any,
) -> GrowablePreTrainedModel:
    """A tiny model in eval mode with random weights; `grown` is its `per_layer_config`."""
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**SHAPE | config, per_layer_config=grown)).eval()
    randomize_(model, seed)
    return model


def output(model: nn.Module, pixels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """The first output: logits, or the last hidden state of a bare encoder."""
    with torch.no_grad():
        return model(pixels, return_dict=False, **kwargs)[0]
