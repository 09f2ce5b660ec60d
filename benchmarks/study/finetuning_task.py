"""The tasks of fine-tuning: few images of Fashion-MNIST, or of digits, as a pretrained backbone wants them."""

from functools import cache, lru_cache
from itertools import islice

import torch
from torch import Tensor, nn

from hf_saddle.models import SaddleViTForImageClassification

from .backbone import MEAN, STD, pretrained
from .task import CLASSES, Split, digits, upright
from .training import training_batches


LAYERS, IMAGE = 3, 42
TRAIN, VALIDATION, TEST = 2_000, 1_000, 2_000  # images, of digits 1,000, 297 and 500
STEPS, BATCH = 120, 32
CALIBRATION = 512  # images


def splits_of(task: str) -> tuple[dict[str, Split], float, float]:
    """The splits of a task, and the deviation and mean that make its pixels lie in [0, 1] again."""
    return (upright(), 0.3530, 0.2860) if task == "fashion-mnist" else (digits(), 0.5, 0.5)


def images(split: Split, indices: Tensor, deviation: float, mean: float, size: int = IMAGE) -> Split:
    """Images in three channels, enlarged, with pixels normalised as those that the backbone was made for."""
    grey = split.images[indices] * deviation + mean
    large = nn.functional.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    middle, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return Split((large.expand(-1, 3, -1, -1) - middle) / scale, split.labels[indices])


@cache
def held_out(task: str, name: str) -> Split:
    """The first images of `validation` or `test`, the same for all runs."""
    splits, *scale = splits_of(task)
    size = min({"validation": VALIDATION, "test": TEST}[name], len(splits[name]))
    return images(splits[name], torch.arange(size), *scale)


@lru_cache(maxsize=1)
def training_data(task: str, seed: int) -> tuple[Split, list[dict[str, Tensor]]]:
    """A training set of its own for every seed, and the batches of all steps."""
    splits, *scale = splits_of(task)
    order = torch.randperm(len(splits["train"]), generator=torch.Generator().manual_seed(3_000 + seed))
    chosen = images(splits["train"], order[:TRAIN], *scale)
    return chosen, list(islice(training_batches(chosen, seed, BATCH), STEPS))


@torch.no_grad()
def truncated_backbone(split: Split, seed: int) -> SaddleViTForImageClassification:
    """
    The first layers of the backbone with a new head.

    The stored last norm belongs to the last layer, and class tokens of early layers hardly differ between images: this
    norm gives the features of training images the mean 0 and the deviation 1 instead.
    """
    model = pretrained(LAYERS, IMAGE, CLASSES, seed).eval()
    norm = model.vit.layernorm
    norm.weight.fill_(1.0)
    norm.bias.zero_()
    parts = split.images[:CALIBRATION].split(128)
    features = torch.cat([model.vit(pixel_values=part).last_hidden_state[:, 0] for part in parts])
    deviation, mean = torch.std_mean(features, dim=0)
    norm.weight.copy_(1 / deviation)
    norm.bias.copy_(-mean / deviation)
    return model.train()
