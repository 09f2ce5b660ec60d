"""The whole job in one function: data, model, training with growth, evaluation, saving, and reloading as proof."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, DatasetDict, disable_progress_bars
from transformers import AutoConfig, PreTrainedModel, TrainingArguments
from transformers import logging as transformers_logging

from ..growth import GrowthConfig, GrowthHistory
from ..growth.old_names import refuse_options
from ..training import GrowthCallback, GrowthTrainer
from .arguments import ModelAndDataArguments
from .options import parse
from .tasks import TASKS, Task
from .used import begin_anew, is_used


# What suits the default model and data; every one of them is an option.
DEFAULTS = {
    "num_train_epochs": 30,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 128,
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "warmup_steps": 40,
    "lr_scheduler_type": "cosine",
    "eval_strategy": "epoch",
    "logging_steps": 50,
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "report_to": "none",
    "dataloader_pin_memory": torch.accelerator.is_available(),
}


EXAMPLES = """
examples:
  hf-saddle grow --output-dir outputs/demo
  hf-saddle grow --output-dir outputs/demo --resume-from-checkpoint last
  hf-saddle grow --output-dir outputs/early --preset early --max-growth 2
  hf-saddle grow --output-dir outputs/tuned --preset finetune --model-name-or-path facebook/deit-tiny-patch16-224
  hf-saddle grow --config options.yaml --seed 1 --output-dir outputs/seed-1

All fields of TrainingArguments are options too. `--name None` empties an option.
"""


@dataclass(frozen=True)
class RunResult:
    """What [`train_and_grow`] leaves behind."""

    trainer: GrowthTrainer
    metrics: dict[str, float]
    history: GrowthHistory
    reload_difference: float


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


def train_and_grow(arguments: ModelAndDataArguments, growth: GrowthConfig, training: TrainingArguments) -> RunResult:
    """
    Train a model that grows, test it, save it, and verify that the saved model computes the same.

    Args:
        arguments ([`ModelAndDataArguments`]): Task, model and data.
        growth ([`~hf_saddle.GrowthConfig`]): When, where, how and how much to grow.
        training (`TrainingArguments`): As for any `Trainer`.

    Returns:
        [`RunResult`]: the trainer, metrics on the test split, the history, and the largest difference between the
        logits of the trained and the reloaded model on test samples (0.0 is expected).

    Raises:
        ValueError: If data, model and task do not fit each other.
    """
    resume = training.resume_from_checkpoint
    # The first process clears the folder before the others look at it.
    with training.main_process_first(local=False):
        if is_used(training.output_dir) and not resume:
            begin_anew(training.output_dir, arguments.overwrite)
    torch.manual_seed(training.seed)
    task = TASKS[arguments.task]
    training.include_for_metrics = sorted({*training.include_for_metrics, "loss"})
    splits = task.load(arguments, training.seed)
    processor = task.processor(arguments, splits)
    model = build_model(arguments, splits, processor)
    data = task.prepare(splits, processor, arguments)
    trainer = GrowthTrainer(
        model=model,
        args=training,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=task.collator(processor),
        processing_class=processor,
        compute_metrics=task.compute_metrics,
        preprocess_logits_for_metrics=task.shrink_logits,
        callbacks=[GrowthCallback(growth)],
    )
    trainer.card_facts = {"dataset": arguments.dataset or task.dataset, "base_model": arguments.model_name_or_path}
    trainer.train(resume_from_checkpoint=True if resume in ("last", "true", "True") else resume)
    metrics = trainer.evaluate(data["test"], metric_key_prefix="test")
    trainer.save_model()
    trainer.log_metrics("test", metrics)
    trainer.save_metrics("test", metrics)
    trainer.save_state()
    trainer.create_model_card()
    reloaded = task.auto_class.from_pretrained(training.output_dir)
    difference = reload_difference(model, reloaded, data["test"], trainer.data_collator)
    return RunResult(trainer, metrics, GrowthHistory.from_model(model), difference)


@torch.no_grad()
def reload_difference(model: PreTrainedModel, reloaded: PreTrainedModel, data: Dataset, collator: Any) -> float:
    """Largest difference of the logits of two models on one batch."""
    batch = collator([data[index] for index in range(min(16, len(data)))])
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    logits, others = (each.to(model.device).eval()(**inputs).logits for each in (model, reloaded))
    return float((logits - others).abs().max())


class _Lines(logging.Handler):
    """Writes to whatever is the output of the program at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(f"{self.format(record)}\n")


def _lines_instead_of_bars() -> None:
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    ours = logging.getLogger("hf_saddle.training")
    ours.setLevel(logging.INFO)
    if not ours.handlers:
        ours.addHandler(_Lines())


def run(arguments: Sequence[str] | None = None, prog: str | None = None) -> str:
    """
    The job as a program: options in, a report for people out.

    Args:
        arguments (`Sequence[str]`, *optional*): Command line; that of the process if `None`.
        prog (`str`, *optional*): Name of the program in `--help`.

    Returns:
        `str`: What grew, the metric of the task on the test split, and where the model is; empty on all processes
            but the first.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    refuse_options(words)
    # Bars are for people who watch; a log file gets lines.
    defaults = DEFAULTS | {"disable_tqdm": not sys.stderr.isatty()}
    kinds = (ModelAndDataArguments, GrowthConfig, TrainingArguments)
    usage = f"{prog or '%(prog)s'} --output-dir DIR [--preset NAME] [--config FILE] [options]"
    model_and_data, growth, training = parse(kinds, words, defaults, prog=prog, usage=usage, epilog=EXAMPLES)
    if training.disable_tqdm:
        _lines_instead_of_bars()
    result = train_and_grow(model_and_data, growth, training)
    if not result.trainer.is_world_process_zero():
        return ""
    metric = TASKS[model_and_data.task].metric
    return (
        f"{result.history.table()}\n\ntest {metric}: {result.metrics[f'test_{metric}']:.4f}\nsaved to "
        f"{result.trainer.args.output_dir}; largest difference of logits after reloading: {result.reload_difference}"
    )
