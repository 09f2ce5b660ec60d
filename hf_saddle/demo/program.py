"""What the programs `grow` and `compare` share: options with their defaults, and lines in place of bars."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers import TrainingArguments
from transformers import logging as transformers_logging

from ..growth import GrowthConfig
from ..growth.old_names import refuse_options
from .options import FINETUNING, parse


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


def read_options(own: Sequence[type[Any]], words: Sequence[str], prog: str | None, *, epilog: str) -> tuple[Any, ...]:
    """
    Read the command line of a training.

    A training that starts from a checkpoint has the defaults of fine-tuning: a small learning rate, few epochs. Where
    the output is no terminal, lines take the place of progress bars.

    Returns:
        `tuple`: The options of the dataclasses in `own`, [`ModelAndDataArguments`] first, those of growth and those of
            the training.

    Raises:
        ValueError: If no folder is named for what the training writes; a dry run writes nothing.
    """
    # Bars are for people who watch; a log file gets lines.
    # An `output_dir` of None would be a folder that nobody named.
    known = DEFAULTS | {"output_dir": "", "disable_tqdm": not sys.stderr.isatty()}
    kinds = (*own, GrowthConfig, TrainingArguments)
    refuse_options(words, {item.name for kind in kinds for item in fields(kind)})
    usage = f"{prog or '%(prog)s'} --output-dir DIR [--preset NAME] [--config FILE] [options]"

    def read(known: dict[str, Any]) -> tuple[Any, ...]:
        return parse(kinds, words, known, prog=prog, usage=usage, epilog=epilog)

    found = read(known)
    if found[0].model_name_or_path is not None:
        found = read(known | FINETUNING)
    if not found[-1].output_dir and not found[0].dry_run:
        raise ValueError("Name the folder that the result goes to: `--output-dir DIR`.")
    if found[-1].disable_tqdm:
        _lines_instead_of_bars()
    return found


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
