"""The whole job in one function: data, model, training with growth, evaluation, saving, and reloading as proof."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from ..growth import GrowthConfig, GrowthHistory
from ..training import GrowthCallback, GrowthTrainer
from .arguments import ModelAndDataArguments
from .dry_run import dry_run
from .job import build_trainer, load_run_data
from .program import read_options
from .tasks import TASKS
from .used import BeginAnew, check_overwrite, is_used


EXAMPLES = """
examples:
  hf-saddle grow --output-dir outputs/demo
  hf-saddle grow --output-dir outputs/demo --dry-run
  hf-saddle grow --output-dir outputs/demo --resume-from-checkpoint last
  hf-saddle grow --output-dir outputs/early --preset early --max-growth 2
  hf-saddle grow --output-dir outputs/tuned --model-name-or-path facebook/deit-tiny-patch16-224
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


def train_and_grow(arguments: ModelAndDataArguments, growth: GrowthConfig, training: TrainingArguments) -> RunResult:
    """
    Train a model that grows, test it, save it, and verify that the saved model computes the same.

    Returns:
        [`RunResult`]: the trainer, metrics on the test split, the history, and the largest difference between the
        logits of the trained and the reloaded model on test samples (0.0 is expected).

    Raises:
        ValueError: If data, model and task do not fit each other, or the folder has a model and may not be cleared;
            what it has is removed only once the training is about to take its first step.
    """
    resume = training.resume_from_checkpoint
    callbacks: list[TrainerCallback] = [GrowthCallback(growth)]
    if is_used(training.output_dir) and not resume:
        check_overwrite(training.output_dir, arguments.overwrite, arguments.model_name_or_path)
        callbacks.append(BeginAnew())
    task, data = TASKS[arguments.task], load_run_data(arguments, training.seed)
    trainer = build_trainer(arguments, training, data, callbacks)
    trainer.train(resume_from_checkpoint=True if resume in ("last", "true", "True") else resume)
    model, test = trainer.model, data.prepared["test"]
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    trainer.save_model()
    trainer.log_metrics("test", metrics)
    trainer.save_metrics("test", metrics)
    trainer.save_state()
    trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()  # the first process saves
    reloaded = task.auto_class.from_pretrained(training.output_dir)
    difference = reload_difference(model, reloaded, test, trainer.data_collator)
    return RunResult(trainer, metrics, GrowthHistory.from_model(model), difference)


@torch.no_grad()
def reload_difference(model: PreTrainedModel, reloaded: PreTrainedModel, data: Dataset, collator: Any) -> float:
    """Largest difference of the logits of two models on one batch."""
    batch = collator([data[index] for index in range(min(16, len(data)))])
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    logits, others = (each.to(model.device).eval()(**inputs).logits for each in (model, reloaded))
    return float((logits - others).abs().max())


def run(arguments: Sequence[str] | None = None, prog: str | None = None) -> str:
    """
    The job as a program: options in, by default those of the process, a report for people out.

    Returns:
        `str`: What grew, the metric of the task on the test split, and where the model is; with `--dry-run` what would
            grow; empty on all processes but the first.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    model_and_data, growth, training = read_options((ModelAndDataArguments,), words, prog, epilog=EXAMPLES)
    if model_and_data.dry_run:
        return dry_run(model_and_data, growth, training)
    result = train_and_grow(model_and_data, growth, training)
    if not result.trainer.is_world_process_zero():
        return ""
    metric = TASKS[model_and_data.task].metric
    return (
        f"{result.history.table()}\n\ntest {metric}: {result.metrics[f'test_{metric}']:.4f}\nsaved to "
        f"{result.trainer.args.output_dir}; largest difference of logits after reloading: {result.reload_difference}"
    )
