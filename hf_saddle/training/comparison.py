"""Whether growth helped: the same training without it, with it, and with random growth, at equal cost."""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..growth import GrowthConfig, GrowthEvent, GrowthHistory, count_parameters, probe_loss
from ..growth.surgery.grow import versions
from ..hub.comparison import AT_THE_START, GROWTH, NONE, OF_GROWTH, RANDOM, ArmRun, Comparison
from ..hub.measured import device_of, settings_of
from .callback import GrowthCallback
from .checks.start_checks import Training
from .comparison_file import gone_on
from .events.event import growth_event_
from .events.random_growth import random_event_
from .spending import Spending
from .trainer_probe import training_probe


logger = logging.getLogger(__name__)


def compare(
    make_trainer: Callable[[int], Trainer],
    growth: GrowthConfig,
    *,
    seeds: int | Sequence[int] = 3,
    cost: str = "seconds",
    budget: float | None = None,
    points: int = 10,
    test_dataset: Callable[[int], Any] | None = None,
    metric: str = "loss",
    greater_is_better: bool = False,
    settings: dict[str, Any] | None = None,
    path: str | Path | None = None,
    overwrite: bool = False,
) -> Comparison:
    """
    Train without growth, with growth, and with growth at random in the same places; tell what differs.

    All three start with the same weights, see the same data in the same order, and end when the same budget is spent.
    The learning rate's schedule, and events at shares of the training, go by the share of the budget. The random arm
    grows at the same times as many random neurons of every linear, along random directions, as the growing one did
    (copies of neurons take the units that feed them along, so that sizes may differ a little); like that one it pays
    for what its events cost, which is less. The validation loss is measured on the way, at no cost.

    Args:
        make_trainer (`Callable[[int], Trainer]`): Makes the trainer of a seed, without a [`GrowthCallback`]: model,
            data, and arguments with that seed. It is called anew for each arm and must give the same each time. Its
            length is that of the training without growth, where there is no `budget`.
        growth ([`GrowthConfig`]): When, where, how and how much to grow; its `growth_seed` is moved by the seed.
        seeds (`int` or `Sequence[int]`, *optional*, defaults to 3): Seeds, or their number. With one there are no
            intervals.
        cost (`str`, *optional*, defaults to `"seconds"`): What is equal: `"seconds"` on the clock, `"cpu-seconds"` of
            the processor, which other jobs on the machine disturb less, or `"macs"`, multiply-accumulates of all
            forward and backward passes and of the analysis.
        budget (`float`, *optional*): What each training may spend; what the planned steps without growth cost, with
            the same seed, if `None`.
        points (`int`, *optional*, defaults to 10): Measurements of the validation loss in a training.
        test_dataset (`Callable[[int], Dataset]`, *optional*): Gives what is measured at the end, for a seed; the
            trainer's `eval_dataset` if `None`.
        metric (`str`, *optional*, defaults to `"loss"`): A metric of `compute_metrics`, told besides the loss.
        greater_is_better (`bool`, *optional*, defaults to `False`): Whether it is the better the greater it is.
        settings (`dict`, *optional*): What a reader has to know beside the options of training and growth, as task and
            data; kept with the result.
        path (`str` or `Path`, *optional*): File that the result is written to after every seed, and gone on with. The
            result has all seeds of it.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to remove such a file first.

    Returns:
        [`~hf_saddle.hub.Comparison`]: All trainings, with differences and verdicts.

    Raises:
        ValueError: If the trainings cannot be compared: several processes, a callback of growth, no validation data,
            or a schedule that has no meaning at shares of a budget; or if the file has a comparison of other settings.

    Example:

    ```python
    >>> result = compare(make_trainer, GrowthConfig(max_growth=2.0), seeds=3, cost="macs")
    >>> print(result.answer())
    ```"""
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"`seeds` must be different seeds, or their number, at least 1, got {seeds!r}.")
    if budget is not None and not budget > 0:
        raise ValueError(f"`budget` must be above 0, got {budget!r}.")
    split = "validation" if test_dataset is None else "test"
    result = Comparison(cost, metric, greater_is_better, split, dict(settings or {}))

    def conditions_of(seed: int) -> dict[str, Any]:
        test = None if test_dataset is None else test_dataset(seed)
        found = _conditions(make_trainer(seed), seed, growth, test, split)
        return {"budget": budget, "points": points} | found

    if path is not None:
        result = gone_on(path, result, chosen, conditions_of, overwrite)
    missing = [seed for seed in chosen if seed not in result.seeds]
    if missing and cost != "macs":
        _warm_up(make_trainer(missing[0]), growth)
    for seed in missing:
        config = dataclasses.replace(growth, growth_seed=growth.growth_seed + seed)
        allowed, like = budget, list[GrowthEvent]()
        for arm in (NONE, GROWTH, RANDOM):
            trainer = make_trainer(seed)
            _check(trainer, seed)
            spending = Spending(trainer, cost, allowed, points)
            trainer.add_callback(spending)
            if arm != NONE:
                trainer.add_callback(_Growth(config, trainer, spending, like if arm == RANDOM else None))
            parameters = count_parameters(trainer.model)
            trainer.train()
            history = GrowthHistory.from_model(trainer.model)
            if arm == NONE:
                allowed = spending.spent if budget is None else budget
            elif arm == GROWTH:
                like = history.events
            run = ArmRun(
                arm=arm,
                seed=seed,
                steps=trainer.state.global_step,
                spent=spending.spent,
                growth_cost=spending.growth_cost,
                seconds=spending.seconds,
                parameters=count_parameters(trainer.model),
                parameters_before=parameters,
                events=sum(bool(event.layers or event.blocks) for event in history.events),
                curve=spending.curve,
                results=_measured(trainer, None if test_dataset is None else test_dataset(seed), metric),
            )
            result.runs.append(run)
            found = ", ".join(f"{split} {name} {run.results[name]:.4f}" for name in result.metrics)
            logger.info(f"Seed {seed}, {arm}: {run.steps} steps, {run.parameters:,} parameters, {found}")
        if path is not None:
            result.save(path)
    return result


class _Growth(GrowthCallback):
    """Growth that is charged to a budget; with `like`, at random as those events."""

    def __init__(self, config: GrowthConfig, trainer: Trainer, spending: Spending, like: Sequence[GrowthEvent] | None):
        super().__init__(config, trainer=trainer)
        self.spending, self.like = spending, like

    def _grow(self, training: Training, to_come: int) -> GrowthEvent:
        with self.spending.of_event():
            if self.like is None:
                return super()._grow(training, to_come)
            _, state, model, optimizer, loader = training
            batches, loss = training_probe(model, loader, self.config, self.events_done, self.trainer)
            like = self.like[self.events_done] if self.events_done < len(self.like) else None
            return random_event_(
                model,
                optimizer,
                batches,
                self.config,
                like,
                event=self.events_done,
                loss=loss,
                step=state.global_step,
                epoch=state.epoch,
            )


def _conditions(trainer: Trainer, seed: int, growth: GrowthConfig, test: Any, split: str) -> dict[str, Any]:
    """What trainings have in common beside their seed. Of model and data at the start of one the losses tell."""
    _check(trainer, seed)
    batches, loss = training_probe(trainer.model, trainer.get_train_dataloader(), growth, 0, trainer)
    losses = {"training": probe_loss(trainer.model, batches, loss), "validation": trainer.evaluate()["eval_loss"]}
    if test is not None:
        losses[split] = trainer.evaluate(test)["eval_loss"]
    return {
        **{name: value for name, value in settings_of(trainer.args).items() if name != "seed"},
        **{f"{OF_GROWTH}{name}": value for name, value in growth.to_dict().items()},
        "parameters": count_parameters(trainer.model),
        **{f"{name} {AT_THE_START}": value for name, value in losses.items()},
        "device": device_of(trainer.args),
        **versions(),
    }


def _warm_up(trainer: Any, growth: GrowthConfig) -> None:
    """Take steps and grow once outside of all clocks: what a process does for the first time takes longer."""
    _check(trainer, trainer.args.seed)
    trainer.args.max_steps = 3
    trainer.train()
    batches, loss = training_probe(trainer.model, trainer.get_train_dataloader(), growth, 0, trainer)
    growth_event_(trainer.model, trainer.optimizer, batches, growth, loss=loss)
    trainer.evaluate()


def _check(trainer: Trainer, seed: int) -> None:
    """Refuse a trainer that cannot be compared, and keep it from writing and measuring on its own."""
    args = trainer.args
    if args.world_size > 1:
        raise ValueError("A comparison runs in one process: start it without torchrun.")
    if args.seed != seed:
        raise ValueError(
            f"`make_trainer({seed})` made a trainer with `seed={args.seed}`: its arguments must have the seed it gets."
        )
    if any(isinstance(callback, GrowthCallback) for callback in trainer.callback_handler.callbacks):
        raise ValueError(
            "`make_trainer` has to leave the GrowthCallback out: the comparison adds it where it belongs."
        )
    if trainer.eval_dataset is None or isinstance(trainer.eval_dataset, dict):
        raise ValueError("The trainer needs one `eval_dataset`, on which the trainings are compared.")
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)
    args.eval_strategy, args.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    args.load_best_model_at_end = args.eval_on_start = False


def _measured(trainer: Trainer, dataset: Any, metric: str) -> dict[str, float]:
    """
    Metrics at the end.

    Raises:
        ValueError: If there is no such metric, or one is not finite.
    """
    found = trainer.evaluate(dataset, metric_key_prefix="end")
    results = {"loss": float(found["end_loss"])}
    if metric != "loss":
        if f"end_{metric}" not in found:
            raise ValueError(f"`compute_metrics` of the trainer gives no {metric!r}: it has {', '.join(found)}.")
        results[metric] = float(found[f"end_{metric}"])
    diverged = [f"{name} {value}" for name, value in results.items() if not math.isfinite(value)]
    if diverged:
        raise ValueError(
            f"The training diverged, to {', '.join(diverged)} at its end: nothing can be compared. Lower the learning "
            "rate."
        )
    return results
