"""`hf-saddle compare`: whether growth helps on a task of the demo, at equal cost over seeds."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from ..growth import GrowthConfig
from ..hub import Comparison, save_comparison, write_model_card
from ..hub.comparison import COMPARISON_NAME, COSTS
from ..hub.comparison_text import comparison_text
from ..hub.names import public_name
from ..hub.pictures.drawing import can_draw
from ..hub.record import fingerprint
from ..training import GrowthTrainer, compare
from .arguments import ModelAndDataArguments
from .job import build_trainer, load_growable, load_run_data
from .program import read_options
from .tasks import TASKS, Task


EXAMPLES = """
examples:
  hf-saddle compare --output-dir outputs/compare --seeds 3
  hf-saddle compare --output-dir outputs/compare --cost macs --max-growth 2 --num-train-epochs 10
  hf-saddle compare --output-dir outputs/compare --cost seconds --budget 60 --in-card outputs/demo

All options of `hf-saddle grow` are options too: give those of the training in question.
"""


@dataclass
class ComparisonArguments:
    """What is compared, and where the result goes."""

    _argument_group_name = "comparison"

    seeds: int = field(default=3, metadata={"help": "Number of seeds, from `--seed` on; one gives no intervals."})
    cost: str = field(default="seconds", metadata={"help": f"What is equal: {', '.join(COSTS)}."})
    budget: float | None = field(
        default=None, metadata={"help": "What each training may spend; what the one without growth costs if None."}
    )
    points: int = field(default=10, metadata={"help": "Measurements of the validation loss in a training."})
    in_card: str | None = field(
        default=None, metadata={"help": "Folder of a saved model whose card is to tell the result."}
    )

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise ValueError(f"`cost` must be one of {', '.join(COSTS)}, got {self.cost!r}.")
        if self.seeds < 1 or self.points < 1:
            raise ValueError(f"`seeds` and `points` must be at least 1, got {self.seeds} and {self.points}.")
        if self.in_card is not None and not Path(self.in_card, "config.json").is_file():
            raise ValueError(f"`in_card` must be the folder of a saved model, but {self.in_card} has no config.json.")


def compare_runs(
    arguments: ModelAndDataArguments, options: ComparisonArguments, growth: GrowthConfig, training: TrainingArguments
) -> Comparison:
    """
    Compare the trainings of a task of the demo, see [`~hf_saddle.compare`]; the result goes to the output folder.
    `training` is that without growth; its seed is the first one. A comparison that the folder has goes on.

    Raises:
        ValueError: If the folder has a comparison of other settings, or data, model and task do not fit each other.
    """
    folder = Path(training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    data = lru_cache(maxsize=1)(lambda seed: load_run_data(arguments, seed))

    def make_trainer(seed: int) -> GrowthTrainer:
        own = copy.copy(training)
        own.seed, own.report_to, own.push_to_hub = seed, [], False
        return build_trainer(arguments, own, data(seed))

    task, first = TASKS[arguments.task], training.seed
    result = compare(
        make_trainer,
        growth,
        seeds=range(first, first + options.seeds),
        cost=options.cost,
        budget=options.budget,
        points=options.points,
        test_dataset=lambda seed: data(seed).prepared["test"],
        metric=task.metric,
        greater_is_better=task.greater_is_better,
        settings=_settings(arguments, make_trainer(first).model),
        path=folder / COMPARISON_NAME,
        overwrite=arguments.overwrite,
    )
    if can_draw():
        save_comparison(folder, result)
    return result


def _settings(arguments: ModelAndDataArguments, model: PreTrainedModel) -> dict[str, Any]:
    """Task, model and data, and of their options those that are not the default, without paths."""
    dataset, source = arguments.dataset or TASKS[arguments.task].dataset, arguments.model_name_or_path
    told = {"task": arguments.task, "model": type(model).__name__, "data": public_name(dataset)}
    told |= {} if source is None else {"started from": public_name(source)}
    known = {"task", "dataset", "model_name_or_path", "overwrite", "dry_run"}
    given = {item.name: (getattr(arguments, item.name), item.default) for item in fields(arguments)}
    return told | {name: value for name, (value, default) in given.items() if name not in known and value != default}


def tell_in_card(folder: str, task: Task, comparison: Comparison) -> None:
    """Put a comparison beside a saved model, as one for its weights, and its section into the card."""
    model = load_growable(folder, task)
    dataclasses.replace(comparison, weights=fingerprint(model)).save(Path(folder, COMPARISON_NAME))
    write_model_card(folder, model)


def run(words: Sequence[str], prog: str | None = None) -> str:
    """The comparison as a program: the words of a command line in, tables out; `prog` is its name in `--help`."""
    kinds = (ModelAndDataArguments, ComparisonArguments)
    arguments, options, growth, training = read_options(kinds, words, prog, epilog=EXAMPLES)
    if arguments.dry_run:
        raise ValueError("A comparison trains: `--dry-run` is an option of `hf-saddle grow`, with the same others.")
    if options.in_card is not None:
        load_growable(options.in_card, TASKS[arguments.task])  # what cannot be loaded is not found out after hours
    result = compare_runs(arguments, options, growth, training)
    if options.in_card is not None:
        tell_in_card(options.in_card, TASKS[arguments.task], result)
    return f"{comparison_text(result)}\n\nwrote {Path(training.output_dir, COMPARISON_NAME)}"
