"""Data sets by name on the Hub, by folder or by file, with the splits, columns and labels that a training needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, DatasetDict, load_dataset


# What reads a file, by its ending.
_BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
_LABELS = ("fine_label", "label", "labels")


def read_source(name: str, config: str | None = None) -> DatasetDict:
    """
    The splits that a data set's authors made, `train` at least, with all of its columns.

    Args:
        name (`str`):
            Name on the Hub; a folder, as of images in folders by class; or a file (CSV, TSV, JSON, JSON lines,
            parquet, text by lines).
        config (`str`, *optional*): Configuration of a data set on the Hub that has several.

    Raises:
        ValueError: If there is no such data set or file, its format is not known, or it has no `train`.
    """
    path = Path(name)
    try:
        if path.is_file():
            if path.suffix not in _BUILDERS:
                raise ValueError(
                    f"{path} ends in none of {', '.join(_BUILDERS)}, so that it is not known how to read it."
                )
            more = {"delimiter": "\t"} if path.suffix == ".tsv" else {}
            splits = load_dataset(_BUILDERS[path.suffix], data_files=str(path), **more)
        else:
            splits = load_dataset(name, config)
    except (ConnectionError, FileNotFoundError, OSError) as error:
        raise ValueError(
            f"The data set {name!r} could not be loaded: {error}. Without a connection use 'digits' or "
            "'fashion-mnist' for images, 'python-docs' for text, or the path of a file or folder."
        ) from error
    if "train" not in splits:
        raise ValueError(f"The data set {name!r} has no split `train`, only {', '.join(splits)}.")
    return splits


def pick_column(
    name: str,
    features: dict[str, Any],
    kind: str,
    fits: Callable[[str, Any], bool],
    usual: tuple[str, ...],
    wanted: str | None,
) -> str:
    """
    The column of a kind: the one that is wanted, else the first with a usual name, else the only one that fits.

    Args:
        name (`str`): Name of the data set, for messages.
        features (`dict`): Its columns.
        kind (`str`): "image", "text" or "label"; the option that names the column is `{kind}_column`.
        fits (`Callable`): Whether a column, by name and feature, can be of the kind.
        usual (`tuple[str, ...]`): Names that such columns have, the most specific first.
        wanted (`str`, *optional*): The name that the user gave.

    Raises:
        ValueError: If there is none, or several of which none has a usual name.
    """
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"The data set {name!r} has no column {wanted!r}; it has {', '.join(features)}.")
        return wanted
    found = [column for column, feature in features.items() if fits(column, feature)]
    named = [column for column in usual if column in found]
    if not named and len(found) != 1:
        raise ValueError(
            f"The data set {name!r} needs one {kind} column: name it by `{kind}_column`. It has {features}."
        )
    return (named or found)[0]


def pick_label(name: str, features: dict[str, Any], wanted: str | None) -> str:
    """The column of class labels; a column of plain values counts where it is called so."""
    return pick_column(
        name, features, "label", lambda column, f: isinstance(f, ClassLabel) or column in _LABELS, _LABELS, wanted
    )


def with_classes(name: str, splits: DatasetDict) -> DatasetDict:
    """
    The column `label` as `ClassLabel`, with the same classes in all splits.

    Raises:
        ValueError: If the labels are no classes, or `train` lacks a class of another split.
    """
    label = splits["train"].features["label"]
    if isinstance(label, ClassLabel):
        # Benchmarks hide the labels of their test split behind -1.
        shown = {
            split: rows for split, rows in splits.items() if split == "train" or min(rows["label"], default=0) >= 0
        }
        return DatasetDict(shown)
    if "float" in str(getattr(label, "dtype", "")):
        raise ValueError(f"The labels of {name!r} are numbers, not classes; regression is none of the tasks.")
    values = sorted(set(splits["train"]["label"]), key=lambda value: (str(type(value)), value))
    index = {value: number for number, value in enumerate(values)}
    for split, rows in splits.items():
        unknown = sorted({str(value) for value in rows["label"] if value not in index})
        if unknown:
            raise ValueError(
                f"The split {split!r} of {name!r} has labels that `train` lacks: {', '.join(unknown[:5])}."
            )
    classes = ClassLabel(names=[str(value) for value in values])
    return splits.map(lambda row: {"label": index[row["label"]]}).cast_column("label", classes)


def three_splits(
    splits: DatasetDict, seed: int, max_samples: int | None, stratify: str | None = "label"
) -> DatasetDict:
    """
    `train`, `validation` and `test`, held out of `train` where the source lacks them.

    Args:
        splits (`DatasetDict`): At least `train`.
        seed (`int`): Seed of the split.
        max_samples (`int`, *optional*): Keep at most that many samples of each split.
        stratify (`str`, *optional*): Column whose shares are the same in all splits.
    """
    if "test" not in splits:
        held_out = splits["train"].train_test_split(0.2, seed=seed, stratify_by_column=stratify)
        splits = DatasetDict(splits | {"train": held_out["train"], "test": held_out["test"]})
    if "validation" not in splits:
        held_out = splits["train"].train_test_split(0.1, seed=seed, stratify_by_column=stratify)
        splits = DatasetDict(splits | {"train": held_out["train"], "validation": held_out["test"]})
    if max_samples is not None:
        splits = DatasetDict(
            {k: v.shuffle(seed=seed).select(range(min(max_samples, len(v)))) for k, v in splits.items()}
        )
    return splits
