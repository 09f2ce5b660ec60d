"""What a training tells of itself: its settings, its log, its results, and what it ran on."""

import csv
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..growth import PaperGrowthConfig
from ..models.config_fields import is_number


# Seconds of the training so far, in entries of its log.
CLOCK = "training_seconds"
# Marks entries named `eval_…` that are of other data than the validation split, such as the test split.
OTHER_DATA = "other_data"
# Settings that a reader always needs, and those that matter only where they are not the default.
_ALWAYS = (
    "learning_rate",
    "per_device_train_batch_size",
    "num_train_epochs",
    "optim",
    "weight_decay",
    "lr_scheduler_type",
    "seed",
)
_KNOWN = {item.name for item in fields(TrainingArguments)}
_UNLESS_DEFAULT = (
    "max_steps",
    "warmup_steps",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "label_smoothing_factor",
    "lr_scheduler_kwargs",
    "optim_args",
    "bf16",
    "fp16",
    "torch_compile",
    # transformers 5.23 renamed the option; since then the old name is a deprecated alias.
    *[name for name in ("activation_checkpointing", "gradient_checkpointing") if name in _KNOWN][:1],
)
_SPEEDS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", CLOCK)


def settings_of(args: TrainingArguments) -> dict[str, Any]:
    """The settings of a training that a reader needs."""
    settings = {name: _plain(getattr(args, name)) for name in _ALWAYS}
    defaults = {item.name: item.default for item in fields(args)}
    for name in _UNLESS_DEFAULT:
        value = getattr(args, name)
        if value not in (defaults[name], None, {}, False):
            settings[name] = _plain(value)
    if "max_steps" in settings:
        settings.pop("num_train_epochs")
    return settings


def _plain(value: Any) -> Any:
    """Enumerations as their value; everything else fit for JSON is kept."""
    return getattr(value, "value", value)


def told_of_growth(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of all options of growth when a model grew, how and how much; others only where they are not the default."""
    default, always = PaperGrowthConfig().to_dict(), ("at", "criterion", "operator", "max_growth")
    told = {name: value for name, value in options.items() if name in always or value != default.get(name)}
    # Without a multiple another limit is told.
    return {name: value for name, value in told.items() if name != "max_growth" or value is not None}


def results_of(log: list[dict[str, float]], best_step: int | None) -> tuple[str, dict[str, Any]]:
    """
    The metrics that the shared weights have: those of a test after the training, else of the last validation, or of
    that at the step of the best checkpoint, where it was loaded in the end.
    """
    ends = [index for index, entry in enumerate(log) if "train_runtime" in entry]
    tests = [entry for entry in log[ends[-1] :] if "test_loss" in entry] if ends else []
    evaluations = [entry for entry in log if "eval_loss" in entry and best_step in (None, entry.get("step"))]
    for split, prefix, found in (("test", "test_", tests), ("validation", "eval_", evaluations)):
        if found:
            metrics = {key.removeprefix(prefix): value for key, value in found[-1].items()}
            return split, {key: value for key, value in metrics.items() if key not in _SPEEDS}
    return "validation", {}


def duration(log: Sequence[Mapping[str, float]]) -> float | None:
    """
    Seconds that a training took, where its log tells. What `Trainer` states is but the time since it was resumed; the
    clock of growth goes on.
    """
    return max((entry[name] for entry in log for name in ("train_runtime", CLOCK) if name in entry), default=None)


def numbers_only(log: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """
    Entries without texts, lists and values that are not finite, which JSON and pictures cannot hold; and without those
    that are of other data than the training's own.
    """
    own = (entry for entry in log if OTHER_DATA not in entry)
    entries = [{str(key): value for key, value in entry.items() if is_number(value)} for entry in own]
    return [entry for entry in entries if entry]


def device_of(args: TrainingArguments) -> str:
    """The name of the processor that a training ran on."""
    if args.device.type == "cuda":
        return torch.cuda.get_device_name(args.device)
    return f"{args.device.type} ({platform.machine()})"


def emissions_in(folder: Path) -> float | None:
    """Grams of CO2 equivalent in codecarbon's `emissions.csv`, where its callback wrote one."""
    path = folder / "emissions.csv"
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            *_, last = csv.DictReader(file)
        grams = 1000 * float(last.get("emissions") or "nan")
    except (csv.Error, ValueError):  # of no rows, or of a text in place of the number
        return None
    return grams if math.isfinite(grams) else None
