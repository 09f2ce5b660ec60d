"""Data sets of images: splits, labels, and clear errors."""

import gzip

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from sklearn.datasets import load_digits
from transformers import EvalPrediction, ViTImageProcessorPil

from hf_saddle.demo import data, sources
from hf_saddle.demo.data import load_images, preprocess
from hf_saddle.demo.metrics import compute_accuracy
from hf_saddle.demo.tasks import image_processor


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
    split = data.published_splits("fashion-mnist")["test"]
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


def test_a_data_set_on_the_hub_is_asked_for_by_name_with_its_columns(monkeypatch):
    kinds = Features({"front": Image(), "back": Image(), "kind": ClassLabel(2), "rare": ClassLabel(2)})
    images = [np.full((4, 4, 3), index, np.uint8) for index in range(30)]
    rows = {"front": images, "back": images[::-1], "kind": [0] * 30, "rare": [i % 2 for i in range(30)]}
    asked = []

    def load_dataset(*words):
        asked.append(words)
        return DatasetDict(train=Dataset.from_dict(rows, features=kinds))

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    splits = load_images("name/data", dataset_config="v2", image_column="back", label_column="rare")
    assert asked == [("name/data", "v2")]
    assert sorted(np.asarray(row["image"])[0, 0, 0] for split in splits.values() for row in split) == list(range(30))
    assert all(row["label"] == (29 - np.asarray(row["image"])[0, 0, 0]) % 2 for row in splits["train"])


def save_images(folder, count: int = 10) -> None:
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            PIL.Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / name / f"{index}.png")


def test_images_beside_a_metadata_file(tmp_path):
    for index in range(20):
        PIL.Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"{index}.png")
    lines = ["file_name,kind", *(f"{index}.png,{'odd' if index % 2 else 'even'}" for index in range(20))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    splits = load_images(str(tmp_path), label_column="kind")
    assert splits["train"].features["label"].names == ["even", "odd"]
    assert all(np.asarray(row["image"])[0, 0, 0] % 2 == row["label"] for row in splits["test"])


@pytest.mark.parametrize("content", [b"no image", None], ids=["text", "cut short"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, content):
    save_images(tmp_path)
    bad = tmp_path / "dogs" / "3.png"
    bad.write_bytes(bad.read_bytes()[:-30] if content is None else content)
    with pytest.raises(ValueError, match=r"The image \S*dogs/3\.png cannot be read"):
        preprocess(load_images(str(tmp_path)), ViTImageProcessorPil(size={"height": 4, "width": 4}))


def test_a_checkpoint_keeps_its_preprocessing(tmp_path):
    own = ViTImageProcessorPil(
        size={"height": 6, "width": 6}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3
    )
    own.save_pretrained(tmp_path)
    found = image_processor(str(tmp_path), (16, 16))
    assert found.image_mean == own.image_mean and found.image_std == own.image_std
    assert found.resample == 3 and dict(found.size) == {"height": 6, "width": 6}
    splits = load_images("digits", max_samples=4)
    image = splits["test"][0]["image"].convert("RGB").resize((6, 6), PIL.Image.Resampling.BICUBIC)
    expected = (np.asarray(image) / 255 - own.image_mean) / own.image_std
    got = preprocess(splits, found)["test"][0]["pixel_values"].permute(1, 2, 0)
    assert np.allclose(got, expected, atol=1e-5)


def test_preprocessing_that_cannot_be_loaded_is_not_replaced(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}')
    with pytest.raises(ValueError, match=r"The image processor of \S+ cannot be loaded"):
        image_processor(str(tmp_path), (16, 16))
    assert image_processor(None, (16, 12)).size["width"] == 12


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_images_of_16_bits_keep_their_shades(kind, tmp_path):
    shades = np.array([[0, 255, 256], [10_000, 40_000, 65_535]], np.uint16)
    PIL.Image.fromarray(shades).save(tmp_path / f"scan.{kind}")
    found = data._decoded({"path": str(tmp_path / f"scan.{kind}"), "bytes": None}, 0)
    assert np.array_equal(np.asarray(found), np.stack([shades // 256] * 3, axis=-1))


@pytest.mark.parametrize(("dtype", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_images_whose_white_is_not_known_are_refused(dtype, mode, tmp_path):
    PIL.Image.fromarray(np.full((4, 4), 40_000, dtype)).save(tmp_path / "scan.tif")
    with pytest.raises(ValueError, match=rf"scan\.tif cannot be read: it is of Pillow's mode {mode}"):
        data._decoded({"path": str(tmp_path / "scan.tif"), "bytes": None}, 0)


def test_rows_without_an_image_are_named():
    rows = {"image": [np.zeros((4, 4), np.uint8), None], "label": [0, 1]}
    kinds = Features({"image": Image(), "label": ClassLabel(2)})
    splits = DatasetDict(train=Dataset.from_dict(rows, features=kinds))
    with pytest.raises(ValueError, match="no image in row 1"):
        preprocess(splits, ViTImageProcessorPil(size={"height": 4, "width": 4}))


def test_images_without_labels_are_counted(tmp_path):
    for index in range(20):
        PIL.Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"{index}.png")
    lines = ["file_name,label", *(f"{index}.png,{'odd' if index % 2 else ''}" for index in range(20))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="no label in 10 of 20 rows of 'train'"):
        load_images(str(tmp_path))


def test_images_are_not_their_own_labels(tmp_path):
    name = _save_parquet(tmp_path / "set", Features({"image": Image(), "label": ClassLabel(3)}))
    with pytest.raises(ValueError, match="The column 'image' of .* is what is classified"):
        load_images(name, label_column="image")
