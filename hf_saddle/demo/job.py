"""What a job of the demo trains: data as its model takes them, the model, and its trainer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import DatasetDict
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TrainerCallback, TrainingArguments

from ..training import GrowthTrainer
from .arguments import ModelAndDataArguments
from .tasks import TASKS, Task


# Families of text whose positions are weights, of which there are no more.
_LEARNT_POSITIONS = ("bert", "distilbert", "gpt2", "roberta")


@dataclass(frozen=True)
class RunData:
    """Data of a training: with the columns of their source, the processor, and as the model takes them."""

    splits: DatasetDict
    processor: Any
    prepared: DatasetDict


def build_model(arguments: ModelAndDataArguments, splits: DatasetDict, processor: Any = None) -> PreTrainedModel:
    """
    A growable model for the labels of `splits`: from scratch, from a stock checkpoint, or a Saddle one.
    A language model from scratch needs the tokenizer as `processor`.

    Raises:
        ValueError: If the family has no models for the task, there are fewer than two classes, or the checkpoint's
            positions are fewer than the tokens.
    """
    task = TASKS[arguments.task]
    labels: dict[str, Any] = {}
    if "label" in splits["train"].features:
        names = splits["train"].features["label"].names
        if len(names) < 2:
            data = arguments.dataset or task.dataset
            raise ValueError(f"A classifier needs two classes at least; the data set {data!r} has {names}.")
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if arguments.model_name_or_path is None:
        model_type, fields = task.fields(arguments, processor)
        model_class = task.model_class(model_type)
        model: PreTrainedModel = model_class(model_class.config_class(**fields, **labels))
        return model
    model = load_growable(arguments.model_name_or_path, task, **labels)
    positions = _positions(model.config)
    if positions < arguments.block_size:
        raise ValueError(
            f"{arguments.model_name_or_path} has positions for {positions} tokens, and samples may have "
            f"{arguments.block_size}: give it no more by `--block-size {positions}`."
        )
    return model


def _positions(config: PreTrainedConfig) -> float:
    """How many tokens a model can take."""
    family = config.model_type.removeprefix("saddle_")
    if family not in _LEARNT_POSITIONS:
        return math.inf
    # RoBERTa counts positions from behind the padding token on.
    first = config.pad_token_id + 1 if family == "roberta" else 0
    return int(config.max_position_embeddings - first)


def load_growable(source: str, task: Task, **labels: Any) -> PreTrainedModel:
    """The growable model of a checkpoint, stock or Saddle, with a new head where it has another number of labels."""
    model_type = type(AutoConfig.from_pretrained(source)).model_type
    model_class = task.model_class(model_type)
    if model_type != model_class.config_class.model_type:
        model: PreTrainedModel = model_class.from_stock(source, **labels)
    else:
        model = model_class.from_pretrained(source, **labels, ignore_mismatched_sizes=True)
    return model


def load_run_data(arguments: ModelAndDataArguments, seed: int) -> RunData:
    """The data of a training, split by a seed where their source does not split them."""
    task = TASKS[arguments.task]
    splits = task.load(arguments, seed)
    processor = task.processor(arguments, splits)
    return RunData(splits, processor, task.prepare(splits, processor, arguments))


def build_trainer(
    arguments: ModelAndDataArguments,
    training: TrainingArguments,
    data: RunData,
    callbacks: Sequence[TrainerCallback] = (),
) -> GrowthTrainer:
    """The trainer of a model that is new, by the seed of its arguments; without `callbacks` it does not grow."""
    torch.manual_seed(training.seed)
    task = TASKS[arguments.task]
    training.include_for_metrics = sorted({*training.include_for_metrics, "loss"})
    trainer = GrowthTrainer(
        model=build_model(arguments, data.splits, data.processor),
        args=training,
        train_dataset=data.prepared["train"],
        eval_dataset=data.prepared["validation"],
        data_collator=task.collator(data.processor),
        processing_class=data.processor,
        compute_metrics=task.compute_metrics,
        preprocess_logits_for_metrics=task.shrink_logits,
        callbacks=[*callbacks],
    )
    trainer.card_facts = {"dataset": arguments.dataset or task.dataset, "base_model": arguments.model_name_or_path}
    return trainer
