"""What a job of the demo trains: data as its model takes them, the model, and its trainer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import DatasetDict
from transformers import AutoConfig, PreTrainedModel, TrainerCallback, TrainingArguments

from ..training import GrowthTrainer
from .arguments import ModelAndDataArguments
from .tasks import TASKS, Task


@dataclass(frozen=True)
class RunData:
    """Data of a training: with the columns of their source, the processor, and as the model takes them."""

    splits: DatasetDict
    processor: Any
    prepared: DatasetDict


def build_model(arguments: ModelAndDataArguments, splits: DatasetDict, processor: Any = None) -> PreTrainedModel:
    """
    A growable model for the labels of `splits`: from scratch, from a stock checkpoint, or a Saddle one.

    Args:
        arguments ([`ModelAndDataArguments`]): Which model, for which task.
        splits (`DatasetDict`): Data with a column `label`, where the task has labels.
        processor (*optional*): The tokenizer, for a language model from scratch.

    Raises:
        ValueError: If the family has no models for the task, or the checkpoint's positions are fewer than the tokens.
    """
    task = TASKS[arguments.task]
    labels: dict[str, Any] = {}
    if "label" in splits["train"].features:
        names = splits["train"].features["label"].names
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if arguments.model_name_or_path is None:
        model_type, fields = task.fields(arguments, processor)
        model_class = task.model_class(model_type)
        model: PreTrainedModel = model_class(model_class.config_class(**fields, **labels))
        return model
    return load_growable(arguments.model_name_or_path, task, **labels)


def load_growable(source: str, task: Task, **labels: Any) -> PreTrainedModel:
    """The growable model of a checkpoint, stock or Saddle, with a new head where it has another number of labels."""
    model_type = AutoConfig.from_pretrained(source).model_type
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
