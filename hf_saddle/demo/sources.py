"""Data sets by name on the Hub, by folder or by file, with the splits, columns and labels that a training needs."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError


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
        ValueError: If there is no such data set or file, it is damaged, its format is not known, or it has no `train`.
    """
    path = Path(name)
    ending = path.suffix.lower()
    if path.is_file() and ending not in _BUILDERS:
        raise ValueError(f"{path} ends in none of {', '.join(_BUILDERS)}, so that it is not known how to read it.")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} is empty.")
    try:
        if path.is_file():
            more = {"delimiter": "\t"} if ending == ".tsv" else {}
            splits = load_dataset(_BUILDERS[ending], data_files=str(path), **more)
        else:
            splits = load_dataset(name, config)
    except OSError as error:
        raise ValueError(
            f"The data set {name!r} could not be loaded: {error}. Without a connection use 'digits' or "
            "'fashion-mnist' for images, 'python-docs' for text, or the path of a file or folder."
        ) from error
    except (DatasetsError, ValueError) as error:  # those of a format are the cause of one of `datasets`
        cause = str(error.__cause__ or error).strip().rstrip(".")
        hint = " Files must be whole, and their text in UTF-8." if path.exists() else ""
        raise ValueError(f"The data set {name!r} cannot be read: {cause}.{hint}") from error
    if "train" not in splits:
        raise ValueError(f"The data set {name!r} has no split `train`, only {', '.join(splits)}.")
    if not len(splits["train"]):
        raise ValueError(f"The split `train` of the data set {name!r} has no rows.")
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


def pick_label(name: str, features: dict[str, Any], wanted: str | None, samples: str) -> str:
    """
    The column of class labels; a column of plain values counts where it is called so.

    Raises:
        ValueError: If there is none, several of which none has a usual name, or it is `samples`, the column that is
            to be classified.
    """
    label = pick_column(
        name, features, "label", lambda column, f: isinstance(f, ClassLabel) or column in _LABELS, _LABELS, wanted
    )
    if label == samples:
        raise ValueError(
            f"The column {label!r} of the data set {name!r} is what is classified, and cannot be the labels as well: "
            f"name another one by `label_column`. It has {', '.join(features)}."
        )
    return label


def refuse_gaps(name: str, splits: DatasetDict, column: str, is_gap: Callable[[Any], bool]) -> None:
    """
    Refuse rows that have nothing in a column.

    Raises:
        ValueError: If there are any; the message counts them.
    """
    gaps = {split: sum(map(is_gap, rows[column])) for split, rows in splits.items()}
    told = [f"{count} of {len(splits[split])} rows of {split!r}" for split, count in gaps.items() if count]
    if told:
        raise ValueError(
            f"The data set {name!r} has no {column} in {', '.join(told)}. Fill them in or take them out. In CSV "
            "and TSV words such as NA and None count as empty, too."
        )


def with_classes(name: str, splits: DatasetDict) -> DatasetDict:
    """
    The column `label` as `ClassLabel`, with the same classes in all splits. Splits without any label are left out,
    as benchmarks hide those of their test.

    Raises:
        ValueError: If a row has no label, the labels are no classes, or `train` lacks a class of another split.
    """
    label = splits["train"].features["label"]

    def hidden(value: Any) -> bool:
        # -1 is what `ClassLabel` has for a label that is not told; of plain numbers it may be a class.
        return (
            value is None or value != value or not str(value).strip() or (isinstance(label, ClassLabel) and value < 0)
        )

    splits = DatasetDict(
        {split: rows for split, rows in splits.items() if split == "train" or not all(map(hidden, rows["label"]))}
    )
    refuse_gaps(name, splits, "label", hidden)
    if isinstance(label, ClassLabel):
        return splits
    if any(isinstance(value, float | list | dict) for value in splits["train"]["label"]):
        raise ValueError(
            f"The labels of {name!r} are numbers or lists, not classes: neither regression nor several labels of one "
            "sample are among the tasks."
        )
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
    name: str, splits: DatasetDict, seed: int, max_samples: int | None, stratify: str | None = "label"
) -> DatasetDict:
    """
    `train`, `validation` and `test`, held out of `train` where the source lacks them.

    Args:
        name (`str`): Name of the data set, for messages.
        splits (`DatasetDict`): At least `train`.
        seed (`int`): Seed of the split.
        max_samples (`int`, *optional*): Keep at most that many samples of each split.
        stratify (`str`, *optional*): Column whose shares are the same in all splits.

    Raises:
        ValueError: If `train` is too small for a split to be held out of it.
    """
    whole = splits["train"]
    for split, share in (("test", 0.2), ("validation", 0.1)):
        if split in splits:
            continue
        try:
            held_out = splits["train"].train_test_split(share, seed=seed, stratify_by_column=stratify)
        except ValueError as error:
            raise ValueError(
                f"The data set {name!r} is too small to hold a split {split!r} out of `train`: "
                f"{_told(whole, stratify)}. Add samples, or give it that split."
            ) from error
        splits = DatasetDict(splits | {"train": held_out["train"], split: held_out["test"]})
    if max_samples is not None:
        splits = DatasetDict(
            {k: v.shuffle(seed=seed).select(range(min(max_samples, len(v)))) for k, v in splits.items()}
        )
    return splits


def _told(rows: Dataset, stratify: str | None) -> str:
    """How many samples there are, and the class with the fewest."""
    if stratify is None:
        return f"it has {len(rows)} samples"
    counts = Counter(rows[stratify])
    rarest = min(counts, key=lambda value: counts[value])
    fewest = f"{rows.features[stratify].int2str(rarest)!r} has {counts[rarest]}"
    return f"it has {len(rows)} samples of {len(counts)} classes, of which every split needs each, and {fewest}"
