"""The tasks, each with a validation split, and small ViTs for them: Fashion-MNIST, digits and CIFAR-100."""

import base64
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from hf_saddle.demo.data import fashion_mnist_arrays
from hf_saddle.models import SaddleViTConfig, SaddleViTForImageClassification


VALIDATION = 5_000
CLASSES = 10
# Of the training images, by colour.
CIFAR_MEAN = torch.tensor([0.5071, 0.4865, 0.4409])[:, None, None]
CIFAR_STD = torch.tensor([0.2673, 0.2564, 0.2762])[:, None, None]


def oriented(images: Tensor) -> Tensor:
    """An eighth of the images `(n, channels, size, size)` each in the four rotations and their mirror images."""
    parts = images.chunk(8)
    return torch.cat([torch.rot90(p.flip(-1) if k % 2 else p, k // 2, (-2, -1)) for k, p in enumerate(parts)])


@dataclass(frozen=True)
class Split:
    """Images `(n, channels, size, size)` normalised, and labels `(n,)`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, generator: Generator | None = None) -> dict[str, Tensor]:
        """Arguments of the model; with a generator as in training, where images may be changed at random."""
        return {"pixel_values": self.images[indices], "labels": self.labels[indices]}


class TurnedSplit(Split):
    """A split whose batches have images in all orientations."""

    def batch(self, indices: Tensor, generator: Generator | None = None) -> dict[str, Tensor]:
        """Arguments of the model."""
        return {"pixel_values": oriented(self.images[indices]), "labels": self.labels[indices]}


class ShiftedSplit(Split):
    """A split whose images are mirrored and shifted by up to 4 pixels in training."""

    def batch(self, indices: Tensor, generator: Generator | None = None) -> dict[str, Tensor]:
        """Arguments of the model."""
        images = self.images[indices]
        if generator is not None:
            count, _, size, _ = images.shape
            mirrored = torch.rand(count, generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
            rows, columns = torch.randint(9, (2, count, 1), generator=generator) + torch.arange(size)
            padded = nn.functional.pad(images, (4, 4, 4, 4))
            images = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None]]
            images = images.permute(0, 3, 1, 2)
        return {"pixel_values": images, "labels": self.labels[indices]}


@cache
def upright() -> dict[str, Split]:
    """As published: `train` (55,000), `validation` (the last 5,000 of the training file), `test` (10,000)."""
    splits = {}
    for name in ("train", "test"):
        images, labels = fashion_mnist_arrays(name)
        pixels = (torch.from_numpy(images.copy()).float()[:, None] / 255 - 0.2860) / 0.3530
        splits[name] = Split(pixels, torch.from_numpy(labels.copy()).long())
    train = splits["train"]
    splits["validation"] = Split(train.images[-VALIDATION:], train.labels[-VALIDATION:])
    splits["train"] = Split(train.images[:-VALIDATION], train.labels[:-VALIDATION])
    return splits


@cache
def fashion_mnist() -> dict[str, Split]:
    """The same splits, those of training turned anew in every batch, the others once."""
    splits = upright()
    turned = {name: Split(oriented(splits[name].images), splits[name].labels) for name in ("validation", "test")}
    return {"train": TurnedSplit(splits["train"].images, splits["train"].labels), **turned}


@cache
def digits() -> dict[str, Split]:
    """The 1,797 digits of scikit-learn, enlarged to 28 pixels: 1,000 for training, 297 for validation, 500 to test."""
    bunch = load_digits()
    images = nn.functional.interpolate(torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1, 28)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = dict(zip(("train", "validation", "test"), order.split((1_000, 297, 500)), strict=True))
    return {name: Split(images[part], torch.tensor(bunch.target)[part]) for name, part in parts.items()}


@cache
def cifar_100() -> dict[str, Split]:
    """
    CIFAR-100 by fine labels: `train` (the first 45,000 of the training images), `validation` (the last 5,000), `test`.

    The variable `CIFAR100` may name a folder or another data set for `datasets.load_dataset`, with images and labels
    under the names of the original or as `image` and `label`.
    """
    splits = {}
    for name, part in load_dataset(os.environ.get("CIFAR100", "uoft-cs/cifar100")).items():
        image, label = ("img", "fine_label") if "fine_label" in part.column_names else ("image", "label")
        pixels = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in part[image]]))
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - CIFAR_MEAN) / CIFAR_STD
        splits[name] = Split(images, torch.tensor(part[label]))
    train = splits["train"]
    splits["validation"] = Split(train.images[-VALIDATION:], train.labels[-VALIDATION:])
    splits["train"] = ShiftedSplit(train.images[:-VALIDATION], train.labels[:-VALIDATION])
    return splits


TASKS = {"fashion-mnist": fashion_mnist, "digits": digits, "cifar-100": cifar_100}


def shape(width: int, hidden: int = 16) -> dict[str, Any]:
    """Fields of a `SaddleViTConfig`; `width` is that of the MLPs."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
        "intermediate_size": width,
    }


def make_model(seed: int, shape: dict[str, Any]) -> SaddleViTForImageClassification:
    """A ViT from scratch; `shape` are fields of its config."""
    torch.manual_seed(seed)
    fields = {"image_size": 28, "num_channels": 1, "num_labels": CLASSES} | shape
    model = SaddleViTForImageClassification(SaddleViTConfig(**fields))
    model.set_attn_implementation("eager")  # faster than the fused kernel on so few tokens
    return model


def evaluate(model: SaddleViTForImageClassification, split: Split) -> dict[str, float]:
    """Mean loss and accuracy in evaluation mode; the mode is restored."""
    found = evaluate_each(model, split)
    return {name: found[name] for name in ("loss", "accuracy")}


def evaluate_each(model: SaddleViTForImageClassification, split: Split) -> dict[str, Any]:
    """Mean loss and accuracy in evaluation mode, and `right`, which samples were answered right, as bits in base64."""
    loss, right = answers(model, split)
    bits = base64.b64encode(np.packbits(right.numpy())).decode()
    return {"loss": loss, "accuracy": int(right.sum()) / len(split), "right": bits}


@torch.no_grad()
def answers(model: SaddleViTForImageClassification, split: Split, size: int = 500) -> tuple[float, Tensor]:
    """Mean loss, and for every sample whether the answer is right, in evaluation mode; the mode is restored."""
    training, loss, right = model.training, 0.0, []
    model.eval()
    for indices in torch.arange(len(split)).split(size):
        batch = split.batch(indices)
        result = model(**batch)
        loss += float(result.loss) * len(batch["labels"])
        right.append(result.logits.argmax(-1) == batch["labels"])
    model.train(training)
    return loss / len(split), torch.cat(right)
