"""The whole job in one function: data, model, training with growth, evaluation, saving, and reloading as proof."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, DatasetDict, disable_progress_bars
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    TrainingArguments,
    ViTImageProcessorPil,
)
from transformers import logging as transformers_logging

from ..growth import GrowthConfig, GrowthHistory
from ..growth.old_names import refuse_options
from ..models import (
    SaddleDeiTConfig,
    SaddleDeiTForImageClassification,
    SaddleViTConfig,
    SaddleViTForImageClassification,
)
from ..models.configuration_saddle import sides
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..training import GrowthCallback, GrowthTrainer
from .data import load_images, preprocess
from .metrics import compute_accuracy
from .options import parse
from .used import begin_anew, is_used


ARCHITECTURES: dict[str, tuple[type[Any], type[GrowablePreTrainedModel]]] = {
    "deit": (SaddleDeiTConfig, SaddleDeiTForImageClassification),
    "vit": (SaddleViTConfig, SaddleViTForImageClassification),
}

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


@dataclass
class ModelAndDataArguments:
    """Which model starts on which data. The default is a small DeiT with a narrow MLP, from scratch."""

    _argument_group_name = "model and data"

    dataset: str = field(
        default="digits", metadata={"help": "'digits', 'fashion-mnist', or the name of a data set on the Hub."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Keep at most that many samples of each split."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Stock or Saddle checkpoint (folder or repo id) to start from."}
    )
    architecture: str = field(default="deit", metadata={"help": "'deit' or 'vit', for a model from scratch."})
    image_size: int = field(default=16, metadata={"help": "Side of the model's input in pixels, from scratch."})
    patch_size: int = field(default=4, metadata={"help": "Side of a patch in pixels, from scratch."})
    hidden_size: int = field(default=64, metadata={"help": "Width of the residual stream, from scratch."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Number of layers, from scratch."})
    num_attention_heads: int = field(default=4, metadata={"help": "Number of heads, from scratch."})
    intermediate_size: int = field(default=32, metadata={"help": "Initial width of every MLP, from scratch."})
    overwrite: bool = field(
        default=False, metadata={"help": "Train anew in a folder that has a model, and remove that one."}
    )

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"`architecture` must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}.")


@dataclass(frozen=True)
class RunResult:
    """What [`train_and_grow`] leaves behind."""

    trainer: GrowthTrainer
    metrics: dict[str, float]
    history: GrowthHistory
    reload_difference: float


def build_model(arguments: ModelAndDataArguments, splits: DatasetDict) -> GrowablePreTrainedModel:
    """A growable classifier for the labels of `splits`: from scratch, from a stock checkpoint, or a Saddle one."""
    names = splits["train"].features["label"].names
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if arguments.model_name_or_path is None:
        config_class, model_class = ARCHITECTURES[arguments.architecture]
        shapes = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        fields = {name: getattr(arguments, name) for name in (*shapes, "intermediate_size")}
        return model_class(config_class(**fields, **labels))
    model_type = AutoConfig.from_pretrained(arguments.model_name_or_path).model_type
    if model_type in ARCHITECTURES:
        model: GrowablePreTrainedModel = ARCHITECTURES[model_type][1].from_stock(
            arguments.model_name_or_path, **labels
        )
    else:
        model = AutoModelForImageClassification.from_pretrained(
            arguments.model_name_or_path, **labels, ignore_mismatched_sizes=True
        )
    return model


def train_and_grow(arguments: ModelAndDataArguments, growth: GrowthConfig, training: TrainingArguments) -> RunResult:
    """
    Train a classifier that grows, test it, save it, and verify that the saved model computes the same.

    Args:
        arguments ([`ModelAndDataArguments`]): Model and data.
        growth ([`~hf_saddle.GrowthConfig`]): When, where, how and how much to grow.
        training (`TrainingArguments`): As for any `Trainer`.

    Returns:
        [`RunResult`]: the trainer, metrics on the test split, the history, and the largest difference between the
        logits of the trained and the reloaded model on test images (0.0 is expected).
    """
    resume = training.resume_from_checkpoint
    # The first process clears the folder before the others look at it.
    with training.main_process_first(local=False):
        if is_used(training.output_dir) and not resume:
            begin_anew(training.output_dir, arguments.overwrite)
    torch.manual_seed(training.seed)
    splits = load_images(arguments.dataset, seed=training.seed, max_samples=arguments.max_samples)
    model = build_model(arguments, splits)
    height, width = sides(model.config.image_size)
    processor = ViTImageProcessorPil(size={"height": height, "width": width})
    data = preprocess(splits, processor)
    trainer = GrowthTrainer(
        model=model,
        args=training,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=processor,
        compute_metrics=compute_accuracy,
        callbacks=[GrowthCallback(growth)],
    )
    trainer.card_facts = {"dataset": arguments.dataset, "base_model": arguments.model_name_or_path}
    trainer.train(resume_from_checkpoint=True if resume in ("last", "true", "True") else resume)
    metrics = trainer.evaluate(data["test"], metric_key_prefix="test")
    trainer.save_model()
    trainer.log_metrics("test", metrics)
    trainer.save_metrics("test", metrics)
    trainer.save_state()
    trainer.create_model_card()
    reloaded = AutoModelForImageClassification.from_pretrained(training.output_dir)
    return RunResult(trainer, metrics, GrowthHistory.from_model(model), _difference(model, reloaded, data["test"]))


@torch.no_grad()
def _difference(model: GrowablePreTrainedModel, reloaded: GrowablePreTrainedModel, data: Dataset) -> float:
    pixels = data[:64]["pixel_values"].to(model.device)
    logits = model.eval()(pixel_values=pixels).logits
    return float((logits - reloaded.to(model.device).eval()(pixel_values=pixels).logits).abs().max())


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
        `str`: What grew, the test accuracy, and where the model is; empty on all processes but the first.
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
    return (
        f"{result.history.table()}\n\ntest accuracy: {result.metrics['test_accuracy']:.4f}\nsaved to "
        f"{result.trainer.args.output_dir}; largest difference of logits after reloading: {result.reload_difference}"
    )
