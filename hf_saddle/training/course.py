"""Which events fall inside of a training, and what is said of them before its first step."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from ..growth import GrowthConfig
from ..growth.budget import sizes
from ..growth.choice.reasons import amount, no_budget
from ..models.modeling_saddle import GrowablePreTrainedModel


# So many steps are named one by one.
_NAMED = 12


@dataclass(frozen=True)
class Course:
    """The length of a training in steps, and that of its epochs in batches, as `Trainer` counts them."""

    steps: int
    batches: int | None  # of an epoch on one process; `None` without a length
    accumulation: int = 1

    @classmethod
    def of(cls, args: TrainingArguments, state: TrainerState, loader: Any) -> "Course":
        """The course of a training that `Trainer` is about to begin, or in the midst of."""
        batches = len(loader) if has_length(loader) else None
        return cls(state.max_steps, batches, args.gradient_accumulation_steps)

    def epoch(self, step: int) -> float | None:
        """The epochs that are over at the end of a step; `None` where the data have no length."""
        if not self.batches:
            return None
        whole, within = divmod(step, math.ceil(self.batches / self.accumulation))
        return whole + min(within * self.accumulation, self.batches) / self.batches

    def progress(self, config: GrowthConfig, step: int) -> float:
        """Time at the end of a step, as [`GrowthConfig.event_due`] takes it."""
        if config.unit == "training":
            return step / self.steps
        return step if config.unit == "steps" else self.epoch(step) or 0.0

    def events(self, config: GrowthConfig, step: int, events_done: int) -> list[int]:
        """
        The steps after `step` at whose end events will happen: one in a step, and none at the very end.

        Args:
            config ([`GrowthConfig`]): When the model grows.
            step (`int`): Steps that are over.
            events_done (`int`): Events that happened so far, empty ones included.
        """
        found: list[int] = []

        def due(step: int) -> bool:
            return config.event_due(self.progress(config, step), events_done + len(found))

        while True:
            to_come = range(step + 1, self.steps)
            index = bisect_left(to_come, True, key=due)
            if index == len(to_come):
                return found
            step = to_come[index]
            found.append(step)


def announcement(
    config: GrowthConfig,
    course: Course,
    model: GrowablePreTrainedModel,
    growable: int,
    *,
    step: int,
    events_done: int,
) -> tuple[str, bool]:
    """
    One line before the first step: events that fall inside of the training, budget, and what may grow.

    Args:
        config ([`GrowthConfig`]): When, where and how much the model grows.
        course ([`Course`]): The training.
        model ([`GrowablePreTrainedModel`]): The model.
        growable (`int`): Number of linears that may grow.
        step (`int`): Steps that are over, of a resumed training.
        events_done (`int`): Events that are over.

    Returns:
        `tuple[str, bool]`: The line, and whether the model will grow; if not, the line says why and what to do.
    """
    steps = course.events(config, step, events_done)
    number = f" of {len(config.times)}"
    before = f", {events_done} happened before" if events_done else ""
    size, initial, final = sizes(model, config)
    every = len(list(model.growable_linears()))
    where = f"{growable} of {every} linears may grow (ranked by {' and '.join(config.ranking)})"
    if not steps:
        return (
            f"Growth: 0{number} events fall inside of this training{before}: {_why_none(config, course, events_done)}",
            False,
        )
    if size >= final:
        return (
            f"Growth: nothing will grow. {no_budget(size, initial, final, config, events_done)} Raise the limit.",
            False,
        )
    named = ", ".join(map(str, steps[:_NAMED])) + (", …" if len(steps) > _NAMED else "")
    when = f"at step{'s' * (len(steps) > 1)} {named} of {course.steps}"
    if math.isfinite(final):
        told = f"×{final / initial:.3g} of {amount(initial)}; {amount(size)} now"
        limit = f"up to {amount(final)} {config.budget_unit} ({told})"
    elif config.budget_unit == "seconds":
        limit = "the first event measures what a step takes" + (
            "" if config.max_growth is None else f", and the last one may take {config.max_growth:g} times that"
        )
    else:
        limit = f"{amount(size)} {config.budget_unit} now, no final limit"
    if config.event_budget is not None:
        limit += f", at most {amount(config.event_budget)} more at an event"
    return f"Growth: {len(steps)}{number} events fall inside of this training{before}, {when}; {limit}; {where}.", True


def _why_none(config: GrowthConfig, course: Course, events_done: int) -> str:
    if events_done >= len(config.times):
        return "all are over. Give the GrowthConfig more of them to grow on."
    time = config.times[events_done]
    if config.unit == "training":
        return (
            f"the next is due at {time:.0%} of {course.steps} steps, which leaves no step after it. Train longer, or "
            "grow earlier (`at`)."
        )
    end = course.steps if config.unit == "steps" else course.epoch(course.steps)
    unit = config.unit.removesuffix("s")
    which = "next" if events_done else "first"
    return (
        f"the {which} is due at {unit} {time:g}, and the training ends at {unit} {end:.4g}. "
        "Name earlier ones, or shares of the training (`unit='training'`, `at` such as 0.1 0.25 0.4)."
    )
