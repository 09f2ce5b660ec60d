"""DeiT's augmentation: what is done to one image, to a batch, and the order in which images come."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import BaseImageProcessor, DeiTImageProcessorPil, default_data_collator
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


# Images of at most this side are neither enlarged before the crop nor cropped at random scales, as in DeiT.
SMALL = 32
CROP_RATIO = 0.875


def evaluation_processor(image_size: int) -> BaseImageProcessor:
    """DeiT's preparation for evaluation: the middle of the image, 224 of 256 pixels."""
    crops = image_size > SMALL
    return DeiTImageProcessorPil(
        size={"shortest_edge": int(image_size / CROP_RATIO) if crops else image_size},
        crop_size={"height": image_size, "width": image_size},
        do_center_crop=crops,
        resample=PILImageResampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def training_transform(image_size: int) -> Callable[[Any], Tensor]:
    """
    DeiT's random crop, flip, RandAugment and erasing, made by timm.

    Raises:
        ImportError: If timm or torchvision is missing.
    """
    try:
        from timm.data import create_transform
        from torchvision.transforms import InterpolationMode, RandomCrop, Resize
    except ImportError as error:
        raise ImportError(
            "`--augmentation deit` needs timm and torchvision: `pip install 'hf_saddle[recipes]'`, with a torchvision "
            "that fits your torch. `--augmentation none` only resizes."
        ) from error
    transform = create_transform(
        image_size,
        is_training=True,
        color_jitter=0.3,  # without effect beside RandAugment; DeiT passes it too
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    if image_size <= SMALL:
        # Images that have the size already, as those of CIFAR, are not changed by the first step.
        whole = Resize(image_size, InterpolationMode.BICUBIC)
        transform.transforms[:1] = [whole, RandomCrop(image_size, padding=4)]
    return transform


def with_pixels(images: Dataset, transform: Callable[[Any], Tensor] | None, processor: BaseImageProcessor) -> Dataset:
    """Samples of `pixel_values` and `labels`, made whenever they are read: nothing is kept in memory."""
    return images.with_transform(partial(_pixels, transform, processor))


def _pixels(transform: Callable[[Any], Tensor] | None, processor: BaseImageProcessor, batch: dict) -> dict:
    images = [image.convert("RGB") for image in batch["image"]]
    if transform is None:
        pixels = list(processor(images, return_tensors="pt")["pixel_values"])
    else:
        pixels = [transform(image) for image in images]
    return {"pixel_values": pixels, "labels": batch["label"]}


class MixingCollator:
    """
    Mixes every image of a batch with the one at the mirrored place, by mixup or CutMix, and their smoothed labels.

    One of the two is drawn for each batch, with equal odds if both are on, as DeiT does. The labels of a batch are
    probabilities of shape `(batch, num_labels)`. Random numbers are NumPy's global ones, which `Trainer` seeds in
    every worker and saves with a checkpoint.

    Args:
        num_labels (`int`): Number of classes.
        mixup (`float`): Parameter of the Beta distribution of mixup's weight; 0 turns it off.
        cutmix (`float`): Parameter of the Beta distribution of CutMix's area; 0 turns it off.
        label_smoothing (`float`): Probability that is spread evenly over all classes.
    """

    def __init__(self, num_labels: int, mixup: float, cutmix: float, label_smoothing: float):
        self.num_labels = num_labels
        self.mixup, self.cutmix = mixup, cutmix
        self.label_smoothing = label_smoothing

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate samples with `pixel_values` and an integer in `labels`."""
        batch = default_data_collator(samples)
        labels = torch.nn.functional.one_hot(batch["labels"], self.num_labels).float()
        labels = labels * (1 - self.label_smoothing) + self.label_smoothing / self.num_labels
        pixels, share = self._mix(batch["pixel_values"])
        return {"pixel_values": pixels, "labels": share * labels + (1 - share) * labels.flip(0)}

    def _mix(self, pixels: Tensor) -> tuple[Tensor, float]:
        """The mixed images, and the share that each has of its own place."""
        if not self.mixup and not self.cutmix:
            return pixels, 1.0
        cuts = np.random.rand() < 0.5 if self.mixup and self.cutmix else self.cutmix > 0
        strength = self.cutmix if cuts else self.mixup
        share = float(np.random.beta(strength, strength))
        if not cuts:
            return share * pixels + (1 - share) * pixels.flip(0), share
        height, width = pixels.shape[-2:]
        rows, columns = (_interval(size, (1 - share) ** 0.5) for size in (height, width))
        mixed = pixels.clone()
        mixed[..., rows, columns] = pixels.flip(0)[..., rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, 1 - area / (height * width)


def _interval(size: int, part: float) -> slice:
    """An interval of that part of a side around a random place, as far as it lies inside."""
    length, middle = int(size * part), int(np.random.randint(size))
    return slice(max(middle - length // 2, 0), min(middle + (length + 1) // 2, size))


class RepeatedAugmentationSampler(Sampler[int]):
    """
    Every image of an epoch comes `repeats` times in a row, each time for another process (arXiv 1902.05509).

    An epoch has as many steps as without repetition, so that it shows a different `1 / repeats` of the images. Each
    step's batch is in the order of DeiT's `RASampler`, dealt out to the processes one by one. The order depends on
    seed and epoch alone, so that a resumed run goes on with it.

    Args:
        size (`int`): Number of images in the data set.
        repeats (`int`): How often an image comes; 1 for a plain random order.
        batch_size (`int`): Images of one process in one batch.
        processes (`int`): Number of processes, which take batches in turn.
        seed (`int`): Seed of the order.

    Raises:
        ValueError: If there are fewer images than all processes take at once.
    """

    def __init__(self, size: int, repeats: int, batch_size: int, processes: int, seed: int):
        self.size, self.repeats, self.seed = size, repeats, seed
        self.batch_size, self.processes = batch_size, processes
        self.steps = size // (batch_size * processes)
        self.epoch = 0
        if self.steps == 0:
            raise ValueError(
                f"{size} training images are fewer than the {processes} × {batch_size} of one step. Lower "
                "`per_device_train_batch_size`, or raise `max_samples`."
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; Accelerate calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.batch_size * self.processes

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.size, generator=generator).repeat_interleave(self.repeats)[: len(self)]
        # The first process takes the first batch, and so on: each batch gets every so many of a step's indices.
        steps = order.view(self.steps, self.batch_size, self.processes)
        return iter(steps.transpose(1, 2).reshape(-1).tolist())
