"""Data sets of images: splits, labels, and clear errors."""

import gzip

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from sklearn.datasets import load_digits
from transformers import EvalPrediction, ViTImageProcessorPil

from hf_saddle.demo import data
from hf_saddle.demo.data import load_images, preprocess
from hf_saddle.demo.metrics import compute_accuracy


def test_digits_are_split_without_overlap_and_keep_their_labels():
    splits = load_images("digits", seed=3)
    assert {name: len(split) for name, split in splits.items()} == {"train": 1293, "validation": 144, "test": 360}
    counted = np.sort(np.concatenate([np.asarray(split["label"]) for split in splits.values()]))
    assert np.array_equal(counted, np.sort(load_digits().target))


def test_the_seed_decides_the_split():
    first, again, other = (load_images("digits", seed=seed, max_samples=20) for seed in (0, 0, 1))
    assert first["test"]["label"] == again["test"]["label"] != other["test"]["label"]


def test_pixels_have_the_size_of_the_model():
    splits = load_images("digits", max_samples=4)
    processor = ViTImageProcessorPil(size={"height": 12, "width": 12})
    batch = preprocess(splits, processor)["train"][:4]
    assert batch["pixel_values"].shape == (4, 3, 12, 12)
    assert batch["labels"].tolist() == splits["train"]["label"][:4]


def test_fashion_mnist_is_read_from_its_files(tmp_path, monkeypatch):
    pixels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for stem in ("train", "t10k"):
        for kind, values in (("images-idx3", pixels), ("labels-idx1", np.array([7, 0], np.uint8))):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            (tmp_path / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    monkeypatch.setattr(data, "FASHION_MNIST_FOLDER", tmp_path)
    split = data._fashion_mnist()["test"]
    assert np.array_equal(np.asarray(split[1]["image"]), pixels[1])
    assert split.features["label"].int2str(split["label"]) == ["Sneaker", "T-shirt/top"]


def test_a_missing_fashion_mnist_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FASHION_MNIST_FOLDER", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="dataset-fashion-mnist"):
        load_images("fashion-mnist")


def _save_parquet(folder, features: Features, rows: int = 60, split: str = "train") -> str:
    images = [np.full((4, 4, 3), index, np.uint8) for index in range(rows)]
    columns = {
        name: images if isinstance(kind, Image) else [i % 3 for i in range(rows)] for name, kind in features.items()
    }
    folder.mkdir()
    Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def test_any_data_set_with_images_and_fine_labels_can_be_named(tmp_path):
    kinds = {"img": Image(), "coarse_label": ClassLabel(3), "fine_label": ClassLabel(3), "note": Value("int64")}
    splits = load_images(_save_parquet(tmp_path / "set", Features(kinds)))
    assert {name: len(split) for name, split in splits.items()} == {"train": 43, "validation": 5, "test": 12}
    assert splits["train"].column_names == ["image", "label"]


def test_a_data_set_without_labels_is_refused(tmp_path):
    name = _save_parquet(tmp_path / "set", Features({"image": Image(), "caption": Value("int64")}))
    with pytest.raises(ValueError, match="one label column"):
        load_images(name)


def test_a_data_set_without_training_images_is_refused(tmp_path):
    kinds = Features({"image": Image(), "label": ClassLabel(3)})
    with pytest.raises(ValueError, match="no split `train`, only test"):
        load_images(_save_parquet(tmp_path / "set", kinds, split="test"))


def test_a_data_set_that_cannot_be_reached_says_what_works_offline():
    with pytest.raises(ValueError, match="digits"):
        load_images("nobody/nothing")


def test_accuracy_counts_the_largest_logit():
    prediction = EvalPrediction(predictions=np.eye(4), label_ids=np.array([0, 1, 3, 3]))
    assert compute_accuracy(prediction) == {"accuracy": 0.75}


def test_images_in_folders_by_class(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for index in range(10):
            PIL.Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / name / f"{index}.png")
    splits = load_images(str(tmp_path))
    assert splits["train"].features["label"].names == ["cats", "dogs"]
    assert {name: len(split) for name, split in splits.items()} == {"train": 14, "validation": 2, "test": 4}


def test_columns_can_be_named(tmp_path):
    kinds = Features({"front": Image(), "back": Image(), "good": ClassLabel(3), "rare": ClassLabel(3)})
    name = _save_parquet(tmp_path / "set", kinds)
    with pytest.raises(ValueError, match="one image column: name it by `image_column`"):
        load_images(name)
    splits = load_images(name, image_column="back", label_column="rare")
    assert splits["train"].column_names == ["image", "label"]
