"""What several commands need: quiet libraries, a model from a folder or repo, data, tables."""

from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, ViTImageProcessorPil
from transformers.utils import CONFIG_NAME, cached_file, logging

from hf_saddle import models
from hf_saddle.demo.data import load_images, preprocess
from hf_saddle.models import GrowablePreTrainedModel
from hf_saddle.models.configuration_saddle import sides
from hf_saddle.models.json_files import read_json


def quiet() -> None:
    """No progress bars and warnings between the lines of a table."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    disable_progress_bars()


def load_config(source: str, revision: str | None = None) -> PreTrainedConfig:
    """
    The config of a model.

    Raises:
        ValueError: If there is no such folder or repo, or no config in it.
    """
    if not Path(source).is_dir() and (Path(source).exists() or source.count("/") > 1 or source.startswith((".", "/"))):
        raise ValueError(f"{source} is not a folder with a saved model.")
    if Path(source).is_dir() and not Path(source, CONFIG_NAME).exists():
        raise ValueError(f"The folder {source} has no {CONFIG_NAME}: no model was saved there.")
    try:
        file = cached_file(source, CONFIG_NAME, **at(revision))
    except OSError as error:
        if Path(source).is_dir():
            raise
        raise ValueError(f"There is no folder {source}, and no such model was found on the Hub: {error}") from error
    if file is not None:
        read_json(file, "The config")  # transformers' own errors for what is no JSON object name no file
    return AutoConfig.from_pretrained(source, **at(revision), trust_remote_code=False)


def load_model(source: str, revision: str | None = None) -> GrowablePreTrainedModel:
    """
    A growable model in eval mode.

    Raises:
        ValueError: If it is of another kind, damaged, or not there.
    """
    kind = model_class(load_config(source, revision), source)
    model: GrowablePreTrainedModel = kind.from_pretrained(source, **at(revision)).eval()
    return model


def model_class(config: PreTrainedConfig, source: str) -> type[GrowablePreTrainedModel]:
    """
    The growable class that a config was saved with.

    Raises:
        ValueError: If it was none.
    """
    name = (config.architectures or [""])[0]
    if name not in models.__all__ or not name.endswith(("Model", "ForImageClassification", "WithTeacher")):
        raise ValueError(
            f"{source} is a {name or config.model_type}, which does not grow. "
            "Make a growable model of a stock ViT or DeiT with `hf-saddle convert`."
        )
    kind: type[GrowablePreTrainedModel] = getattr(models, name)
    return kind


def at(revision: str | None) -> dict[str, str]:
    """Keyword arguments of `from_pretrained` for a revision; none for a folder or the main branch."""
    return {} if revision is None else {"revision": revision}


def find_processor(source: str, revision: str | None) -> BaseImageProcessor | None:
    """The image processor that was saved with a model, or `None`."""
    try:
        return AutoImageProcessor.from_pretrained(source, **at(revision))
    except (OSError, ValueError):
        return None


def load_data(
    source: str, revision: str | None, model: Any, dataset: str, split: str, samples: int
) -> datasets.Dataset:
    """
    Preprocessed images of a data set, with the model's own image processor where it has one.

    Raises:
        ValueError: If there is no such data set or split, or the model does not know its labels.
    """
    height, width = sides(model.config.image_size)
    processor = find_processor(source, revision) or ViTImageProcessorPil(size={"height": height, "width": width})
    splits = load_images(dataset, max_samples=samples)
    if split not in splits:
        raise ValueError(f"The data set {dataset!r} has no split {split!r}; it has {', '.join(splits)}.")
    labels = splits[split].features["label"].num_classes
    if labels > model.config.num_labels:
        raise ValueError(f"The data set {dataset!r} has {labels} labels, the model {model.config.num_labels}.")
    return preprocess(splits, processor)[split]


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on the terminal; numbers to the right. Foreign text is not taken for markup."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("depth", "operators") else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
