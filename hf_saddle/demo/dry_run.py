"""What a training would grow, when, and what that would cost, found out on a model that is thrown away."""

import copy
import statistics
import time
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, has_length

from ..growth import GrowthConfig, GrowthEvent
from ..growth.records.block_records import block_texts
from ..training import GrowthTrainer, growth_event_
from ..training.checks.model_checks import growable_paths
from ..training.course import Course, announcement
from ..training.reports import by_layer, prediction
from ..training.spending import planned_steps
from ..training.trainer_probe import training_probe
from .arguments import ModelAndDataArguments
from .job import build_trainer, load_run_data


_STEPS = 8


def dry_run(arguments: ModelAndDataArguments, growth: GrowthConfig, training: TrainingArguments) -> str:
    """
    Say what a training on one process would grow. Nothing is written, and the model is thrown away.

    Returns:
        `str`: When events fall; what the first one would grow if it were now; its cost in parameters,
            multiply-accumulates and steps.

    Raises:
        ValueError: If data, model and task do not fit each other, or there are several processes.
    """
    if training.world_size > 1:
        raise ValueError("A dry run needs one process: start it without torchrun.")
    with TemporaryDirectory() as folder:
        own = copy.copy(training)
        own.output_dir, own.push_to_hub, own.report_to = folder, False, []
        own.eval_strategy, own.save_strategy, own.logging_strategy = (
            IntervalStrategy.NO,
            SaveStrategy.NO,
            IntervalStrategy.NO,
        )
        own.load_best_model_at_end = own.eval_on_start = False
        own.disable_tqdm = True
        data = load_run_data(arguments, training.seed)
        trainer = build_trainer(arguments, own, data)
        trainer.remove_callback(PrinterCallback)
        loader, planned = trainer.get_train_dataloader(), planned_steps(trainer)
        course = Course(planned, len(loader) if has_length(loader) else None, own.gradient_accumulation_steps)
        growable = len(growable_paths(trainer.model, growth))
        line, grows = announcement(growth, course, trainer.model, growable, step=0, events_done=0)
        if not grows:
            return f"{line}\n\nNothing was trained or written."
        _seconds_of_a_step(trainer)  # the first steps of a process are slow
        before = _seconds_of_a_step(trainer)
        batches, loss = training_probe(trainer.model, trainer.get_train_dataloader(), growth, 0, trainer)
        to_come = len(course.events(growth, 0, 0))
        event = growth_event_(trainer.model, trainer.optimizer, batches, growth, to_come=to_come, loss=loss)
        after = _seconds_of_a_step(trainer) if event.operators else before
    return "\n\n".join([line, _told(event), _price(event, before, after), "Nothing was trained or written."])


def _told(event: GrowthEvent) -> str:
    """What the event would grow, linear by linear."""
    head = f"The first event, if it were after {2 * _STEPS} steps (later the model asks for other neurons):"
    if not event.operators:
        return f"{head} nothing would grow. {event.held_back or ''}".rstrip()
    lines = by_layer(event.layers) + [f"  {text}" for text in block_texts(event.blocks)]
    told = f"Change of the loss: {prediction(event)}." if event.forecast is not None else ""
    return "\n".join([head, *lines, *([told] if told else [])])


def _price(event: GrowthEvent, before: float, after: float) -> str:
    """What the event would cost."""
    parameters, macs = event.parameters_after - event.parameters_before, event.macs_after - event.macs_before
    return (
        f"It would add {parameters:,} parameters to {event.parameters_before:,} and {macs:,} multiply-accumulates per "
        f"sample to {event.macs_before:,}. It took {event.seconds:.2g} s, the time of {event.seconds / before:.1f} "
        f"steps; a step took {before:.2g} s before it and {after:.2g} s after it."
    )


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when steps end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.times.append(time.perf_counter())


def _seconds_of_a_step(trainer: GrowthTrainer) -> float:
    """Median time from one step to the next of a short training, which changes the trainer's model."""
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.args.max_steps = _STEPS
    trainer.train()
    trainer.remove_callback(clock)
    return statistics.median(later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False))
