"""The tasks of fine-tuning: few images of Fashion-MNIST or of digits, or definitions, as their backbone wants them."""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hf_saddle.models import SaddleViTForImageClassification

from . import glosses
from .backbone import MEAN, STD, pretrained
from .glosses import Texts
from .task import CLASSES, Split, digits, upright
from .training import training_batches


LAYERS, IMAGE = 3, 42
TRAIN, VALIDATION, TEST = 2_000, 1_000, 2_000  # images or texts; of digits 1,000, 297 and 500
STEPS, BATCH = 120, 32
CALIBRATION = 512  # images
# New parameters besides the head: LoRA of rank 9 on q and v, or of rank 2 on all linears, of three layers.
BUDGET = 41_472
GLOSSES = "glosses"


def budget(task: str) -> int:
    """New parameters besides the head; the backbone of texts has the width of that of images, and twice the layers."""
    return 2 * BUDGET if task == GLOSSES else BUDGET


def names_of(task: str, linears: Sequence[str]) -> list[str]:
    """Linears of the ViTs as the backbone of the task has them."""
    return [glosses.LINEARS[name] for name in linears] if task == GLOSSES else list(linears)


def splits_of(task: str) -> tuple[dict[str, Split], float, float]:
    """The splits of a task, and the deviation and mean that make its pixels lie in [0, 1] again."""
    return (upright(), 0.3530, 0.2860) if task == "fashion-mnist" else (digits(), 0.5, 0.5)


def images(split: Split, indices: Tensor, deviation: float, mean: float, size: int = IMAGE) -> Split:
    """Images in three channels, enlarged, with pixels normalised as those that the backbone was made for."""
    grey = split.images[indices] * deviation + mean
    large = nn.functional.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    middle, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return Split((large.expand(-1, 3, -1, -1) - middle) / scale, split.labels[indices])


def drawn(task: str, name: str, number: int, order: Callable[[int], Tensor]) -> Split | Texts:
    """At most so many images or texts of a split, in an order of all that it has."""
    if task == GLOSSES:
        split = glosses.glosses()[name]
        return split.take(order(len(split))[:number])
    splits, *scale = splits_of(task)
    return images(splits[name], order(len(splits[name]))[:number], *scale)


@cache
def held_out(task: str, name: str) -> Split | Texts:
    """The first images or texts of `validation` or `test`, the same for all runs."""
    return drawn(task, name, {"validation": VALIDATION, "test": TEST}[name], torch.arange)


@lru_cache(maxsize=1)
def training_data(task: str, seed: int) -> tuple[Split | Texts, list[dict[str, Tensor]]]:
    """A training set of its own for every seed, and the batches of all steps."""
    order = partial(torch.randperm, generator=torch.Generator().manual_seed(3_000 + seed))
    chosen = drawn(task, "train", TRAIN, order)
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


def backbone_of(task: str, seed: int) -> Any:
    """What is fine-tuned, with a head drawn from `seed`."""
    return glosses.pretrained(seed) if task == GLOSSES else truncated_backbone(training_data(task, seed)[0], seed)
