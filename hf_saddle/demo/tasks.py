"""What a task needs besides a model: data, preprocessing, batches, and metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import DatasetDict
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    ViTImageProcessorPil,
    default_data_collator,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, has_file

import hf_saddle.models as models

from ..models.configuration_saddle import sides
from ..models.families import family_of
from ..models.stock_classes import auto_classes
from .architectures import DECODERS, TEXT, VISION, Fields
from .arguments import ModelAndDataArguments
from .data import load_images, preprocess
from .metrics import compute_accuracy, compute_perplexity
from .text import load_text, pack, tokenize, train_tokenizer


@dataclass(frozen=True)
class Task:
    """
    A kind of training.

    Attributes:
        auto_class: The Auto class of its models, stock and growable.
        architectures (`dict`): Families to start from scratch, the first by default, and the fields of a small config.
        dataset (`str`): The data set that needs no download.
        metric (`str`): What the report tells of the test split.
        load (`Callable`): Arguments and seed to three splits.
        processor (`Callable`): Arguments, splits and a revision to a tokenizer or image processor: that of the
            checkpoint, or a new one.
        prepare (`Callable`): Splits, processor and arguments to columns that the model takes.
        collator (`Callable`): The processor to what makes batches.
        compute_metrics (`Callable`): As in `Trainer`, with losses included.
        shrink_logits (`Callable`, *optional*): What metrics keep of the logits of a batch.
        greater_is_better (`bool`, *optional*, defaults to `True`): Whether the metric is the better the greater it is.
    """

    auto_class: Any
    architectures: dict[str, Fields]
    dataset: str
    metric: str
    load: Callable[[ModelAndDataArguments, int], DatasetDict]
    processor: Callable[..., Any]
    prepare: Callable[[DatasetDict, Any, ModelAndDataArguments], DatasetDict]
    collator: Callable[[Any], Any]
    compute_metrics: Callable[[Any], dict[str, float]]
    shrink_logits: Callable[[Any, Any], Any] | None = None
    greater_is_better: bool = True

    def fields(self, arguments: ModelAndDataArguments, processor: Any) -> tuple[str, dict[str, Any]]:
        """
        Model type and fields of a small config from scratch.

        Raises:
            ValueError: If the family has no models for the task.
        """
        name = arguments.architecture or next(iter(self.architectures))
        if name not in self.architectures:
            known = ", ".join(self.architectures)
            raise ValueError(f"`architecture` must be one of {known} for {arguments.task}, got {name!r}.")
        return name, self.architectures[name](arguments, processor)

    def model_class(self, model_type: str) -> Any:
        """
        The growable class for a model type, stock or growable.

        Raises:
            ValueError: If the family is not known, or has no models for the task.
        """
        stock_type = model_type.removeprefix("saddle_")
        family_of(stock_type)
        names = dict(auto_classes(stock_type)).get(self.auto_class.__name__)
        if names is None:
            raise ValueError(f"Models of type {model_type!r} have no class for {self.auto_class.__name__}.")
        return getattr(models, f"Saddle{names[0]}")


def _loads(
    load: Callable[..., DatasetDict], *columns: str, **options: Any
) -> Callable[[ModelAndDataArguments, int], DatasetDict]:
    """What loads the data that arguments name, by their fields for columns."""

    def of_arguments(arguments: ModelAndDataArguments, seed: int) -> DatasetDict:
        named = {name: getattr(arguments, name) for name in ("dataset_config", *columns)}
        dataset = arguments.dataset or TASKS[arguments.task].dataset
        return load(dataset, seed, arguments.max_samples, **options, **named)

    return of_arguments


def image_processor(source: str | None, size: tuple[int, int], **where: Any) -> Any:
    """
    The image processor of a checkpoint; where it was saved without, or there is none, one that scales to `size`.

    Raises:
        ValueError: If the checkpoint has one that cannot be loaded.
    """
    if source is not None:
        try:
            return AutoImageProcessor.from_pretrained(source, **where)
        except (OSError, ValueError, ImportError) as error:
            if any(has_file(source, name, **where) for name in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)):
                raise ValueError(f"The image processor of {source} cannot be loaded: {error}") from error
    return ViTImageProcessorPil(size=dict(zip(("height", "width"), size, strict=True)))


def _image_processor(arguments: ModelAndDataArguments, splits: DatasetDict, **where: str) -> Any:
    source, size = arguments.model_name_or_path, arguments.image_size
    if source is not None:
        size = AutoConfig.from_pretrained(source, **where).to_dict().get("image_size", size)
    return image_processor(source, sides(size), **where)


def _tokenizer(arguments: ModelAndDataArguments, splits: DatasetDict, **where: str) -> Any:
    source = arguments.model_name_or_path
    if source is not None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **where)
        except (OSError, ValueError) as error:
            raise ValueError(f"{source} has no tokenizer that can be loaded: {error}") from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
    enclose = arguments.task == "text-classification"
    return train_tokenizer(splits["train"]["text"], arguments.vocab_size, enclose=enclose)


def _most_likely(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Tokens in place of logits, which take as much memory for each token as the vocabulary is large."""
    found: torch.Tensor = (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)
    return found


TASKS: dict[str, Task] = {
    "image-classification": Task(
        auto_class=AutoModelForImageClassification,
        architectures=VISION,
        dataset="digits",
        metric="accuracy",
        load=_loads(load_images, "image_column", "label_column"),
        processor=_image_processor,
        prepare=lambda splits, processor, arguments: preprocess(splits, processor),
        collator=lambda processor: default_data_collator,
        compute_metrics=compute_accuracy,
    ),
    "text-classification": Task(
        auto_class=AutoModelForSequenceClassification,
        architectures=TEXT,
        dataset="python-docs",
        metric="accuracy",
        load=_loads(load_text, "text_column", "label_column", labelled=True),
        processor=_tokenizer,
        prepare=lambda splits, tokenizer, arguments: tokenize(splits, tokenizer, arguments.block_size),
        collator=DataCollatorWithPadding,
        compute_metrics=compute_accuracy,
    ),
    "causal-lm": Task(
        auto_class=AutoModelForCausalLM,
        architectures=DECODERS,
        dataset="python-docs",
        metric="perplexity",
        load=_loads(load_text, "text_column"),
        processor=_tokenizer,
        prepare=lambda splits, tokenizer, arguments: pack(splits, tokenizer, arguments.block_size),
        collator=lambda tokenizer: default_data_collator,
        compute_metrics=compute_perplexity,
        shrink_logits=_most_likely,
        greater_is_better=False,
    ),
}
