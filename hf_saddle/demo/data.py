"""Real image data sets as `DatasetDict`s of preprocessed pixels: two that need no download, any other from the Hub."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from transformers import BaseImageProcessor


FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FASHION_LABELS = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


def load_images(name: str, seed: int = 0, max_samples: int | None = None) -> DatasetDict:
    """
    Load a data set of labelled images with the splits `train`, `validation` and `test`.

    Args:
        name (`str`):
            `"digits"` (scikit-learn's 1,797 hand-written digits of 8 × 8 pixels), `"fashion-mnist"` (the Debian
            package `dataset-fashion-mnist`), or the name of a data set on the Hub with an image and a label column.
        seed (`int`, *optional*, defaults to 0):
            Seed of the split, where the source has none.
        max_samples (`int`, *optional*):
            Keep at most that many samples of each split.

    Returns:
        `DatasetDict`: columns `image` (PIL) and `label` (`ClassLabel`).

    Raises:
        ValueError: If the data set is not installed, has no images with labels or no `train`, or cannot be found.
    """
    splits = published_splits(name)
    if "test" not in splits:
        held_out = splits["train"].train_test_split(0.2, seed=seed, stratify_by_column="label")
        splits = DatasetDict(train=held_out["train"], test=held_out["test"])
    if "validation" not in splits:
        held_out = splits["train"].train_test_split(0.1, seed=seed, stratify_by_column="label")
        splits = DatasetDict(splits | {"train": held_out["train"], "validation": held_out["test"]})
    if max_samples is not None:
        splits = DatasetDict(
            {k: v.shuffle(seed=seed).select(range(min(max_samples, len(v)))) for k, v in splits.items()}
        )
    return splits


def published_splits(name: str) -> DatasetDict:
    """
    The splits that a data set's authors made, `train` at least, with the columns of [`load_images`].

    Args:
        name (`str`): As in [`load_images`].

    Raises:
        ValueError: If the data set is not installed, has no images with labels or no `train`, or cannot be found.
    """
    if name == "digits":
        return _digits()
    return _fashion_mnist() if name == "fashion-mnist" else _from_hub(name)


def preprocess(splits: DatasetDict, processor: BaseImageProcessor) -> DatasetDict:
    """Turn images into `pixel_values` of the model's size; labels become `labels`. Kept in memory."""

    def to_pixels(batch: dict[str, Any]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch["image"]]
        return {"pixel_values": processor(images, return_tensors="np")["pixel_values"], "labels": batch["label"]}

    columns = splits["train"].column_names
    return splits.map(to_pixels, batched=True, remove_columns=columns, keep_in_memory=True).with_format("torch")


def _dataset(images: np.ndarray, labels: np.ndarray, names: list[str]) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": list(images), "label": labels.tolist()}, features=features)


def _digits() -> DatasetDict:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn; `pip install 'hf_saddle[demo]'` brings it.") from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return DatasetDict(train=_dataset(images, digits.target, [str(digit) for digit in range(10)]))


def _fashion_mnist() -> DatasetDict:
    return DatasetDict({split: _dataset(*fashion_mnist_arrays(split), _FASHION_LABELS) for split in ("train", "test")})


def fashion_mnist_arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, 28, 28)` and labels `(n,)` of Fashion-MNIST's `"train"` or `"test"` files as bytes."""
    if not FASHION_MNIST_FOLDER.is_dir():
        raise ValueError(
            f"Fashion-MNIST is not in {FASHION_MNIST_FOLDER}. Install the Debian package `dataset-fashion-mnist`, or "
            "give the Hub's name of the data set, `zalando-datasets/fashion_mnist`."
        )
    stem = {"train": "train", "test": "t10k"}[split]
    images, labels = (_read_idx(f"{stem}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    return images, labels


def _read_idx(file: str) -> np.ndarray:
    """Read the IDX format of MNIST: a header of big-endian sizes, then bytes."""
    raw = gzip.decompress((FASHION_MNIST_FOLDER / file).read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _from_hub(name: str) -> DatasetDict:
    try:
        splits = load_dataset(name)
    except (ConnectionError, FileNotFoundError, OSError) as error:
        raise ValueError(
            f"The data set {name!r} could not be loaded: {error}. Without a connection use 'digits' or "
            "'fashion-mnist'."
        ) from error
    if "train" not in splits:
        raise ValueError(f"The data set {name!r} has no split `train`, only {', '.join(splits)}.")
    features = splits["train"].features
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    labels = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(images) != 1 or not labels:
        raise ValueError(f"The data set {name!r} needs one image column and a label column, it has {features}.")
    # The finest labels come last where a set has several, as in CIFAR-100 (coarse and fine).
    label = "fine_label" if "fine_label" in labels else labels[0]
    return splits.select_columns([images[0], label]).rename_columns({images[0]: "image", label: "label"})
