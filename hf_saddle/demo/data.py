"""Labelled images as `DatasetDict`s of preprocessed pixels: two sets that need no download, any other by its name."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from transformers import BaseImageProcessor

from .sources import pick_column, pick_label, read_source, three_splits, with_classes


FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FASHION_LABELS = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def load_images(name: str, seed: int = 0, max_samples: int | None = None, **columns: str | None) -> DatasetDict:
    """
    Load a data set of labelled images with the splits `train`, `validation` and `test`.

    Args:
        name (`str`):
            `"digits"` (scikit-learn's 1,797 hand-written digits of 8 × 8 pixels), `"fashion-mnist"` (the Debian
            package `dataset-fashion-mnist`), the name of a data set on the Hub with an image and a label column, or a
            folder with a folder of images for each class.
        seed (`int`, *optional*, defaults to 0):
            Seed of the split, where the source has none.
        max_samples (`int`, *optional*):
            Keep at most that many samples of each split.
        columns (`str`, *optional*):
            `dataset_config`, `image_column` and `label_column` of a data set that leaves a choice.

    Returns:
        `DatasetDict`: columns `image` (PIL) and `label` (`ClassLabel`).

    Raises:
        ValueError: If the data set is not installed, has no images with labels or no `train`, or cannot be found.
    """
    return three_splits(name, published_splits(name, **columns), seed, max_samples)


def published_splits(
    name: str, dataset_config: str | None = None, image_column: str | None = None, label_column: str | None = None
) -> DatasetDict:
    """
    The splits that a data set's authors made, `train` at least, with the arguments and columns of [`load_images`].

    Raises:
        ValueError: If the data set is not installed, has no images with labels or no `train`, or cannot be found.
    """
    if name == "digits":
        return _digits()
    if name == "fashion-mnist":
        sets = {split: _dataset(*fashion_mnist_arrays(split), _FASHION_LABELS) for split in ("train", "test")}
        return DatasetDict(sets)
    splits = read_source(name, dataset_config)
    features = splits["train"].features
    image = pick_column(
        name, features, "image", lambda _, feature: isinstance(feature, Image), ("image",), image_column
    )
    label = pick_label(name, features, label_column, image)
    splits = splits.select_columns([image, label]).rename_columns({image: "image", label: "label"})
    return with_classes(name, splits)


def preprocess(splits: DatasetDict, processor: BaseImageProcessor) -> DatasetDict:
    """
    Turn images into `pixel_values` of the model's size; labels become `labels`. Kept in memory.

    Raises:
        ValueError: If an image cannot be read, or nobody knows which of its values is white; the message names its
            file, or its row where it has none.
    """

    def to_pixels(batch: dict[str, Any], rows: list[int]) -> dict[str, Any]:
        images = [_decoded(*pair) for pair in zip(batch["image"], rows, strict=True)]
        return {"pixel_values": processor(images, return_tensors="np")["pixel_values"], "labels": batch["label"]}

    columns = splits["train"].column_names
    encoded = splits.cast_column("image", Image(decode=False))
    pixels = encoded.map(to_pixels, batched=True, with_indices=True, remove_columns=columns, keep_in_memory=True)
    return pixels.with_format("torch")


def _decoded(encoded: dict[str, Any], row: int) -> PIL.Image.Image:
    """An image of a data set, in colours."""
    if encoded is None:
        raise ValueError(f"There is no image in row {row}. Add it or take the row out.")
    try:
        image: PIL.Image.Image = Image().decode_example(encoded)
        if image.mode in ("I", "F"):
            raise ValueError(f"it is of Pillow's mode {image.mode}, whose white is not known; save it in 8 or 16 bits")
        if image.mode.startswith("I;16"):  # Pillow would take all from 255 on for white
            image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # what the parts of Pillow raise for damaged files
        name = encoded["path"] or f"in row {row}"
        raise ValueError(f"The image {name} cannot be read: {error}. Mend it or take it out.") from error
    return image


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
