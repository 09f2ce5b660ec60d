"""A training whose pace is what it has cost: learning rate, events, measurements and end go by shares of a budget."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from ..hub.comparison import COSTS
from .events.probe import private_randomness


# A backward pass costs two forward passes.
_PASSES = 3
# Schedules whose value depends on the share of the training alone, up to the warm-up.
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
# The length in steps that a Trainer believes in; the schedule is read at shares of it.
_LENGTH = 10**9
_CLOCKS = {"seconds": time.perf_counter, "cpu-seconds": time.process_time}


def planned_steps(trainer: Trainer) -> int:
    """
    The number of steps that a trainer's arguments ask for.

    Raises:
        ValueError: If the data have no length and there is no `max_steps`.
    """
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    loader = trainer.get_train_dataloader()
    if not has_length(loader):
        raise ValueError("The training data have no length: say by `max_steps` how long to train.")
    return int(math.ceil(args.num_train_epochs * max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))))


def _counting() -> FlopCounterMode:
    """A counter of two operations for each multiply-accumulate, of attention on a processor too."""

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]

    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


class Spending(TrainerCallback):  # type: ignore[misc]
    """
    Counts what a training costs, ends it when a budget is spent, and measures the validation loss on the way.

    The learning rate follows its schedule by the share of the budget that is spent, warm-up included, and so does
    `state.max_steps`, by which events at shares of the training are due: all arms of a comparison anneal to the end
    of their own budget. Evaluations cost nothing. Add it before the callback of growth.

    Args:
        trainer (`Trainer`): What trains; its arguments are changed.
        cost (`str`): `"seconds"`, `"cpu-seconds"` or `"macs"`, multiply-accumulates.
        budget (`float`, *optional*): What may be spent; `None` for what the planned steps cost.
        points (`int`): Number of measurements, the last one at the end.

    Raises:
        ValueError: If the learning rate's schedule has no meaning at shares of a budget.
    """

    def __init__(self, trainer: Trainer, cost: str, budget: float | None, points: int):
        args = trainer.args
        if trainer.lr_scheduler is not None or args.lr_scheduler_type not in SCHEDULES:
            raise ValueError(
                f"`lr_scheduler_type` must be one of {', '.join(SCHEDULES)}, made by the Trainer: by others the "
                "learning rate is no function of the share of a budget."
            )
        self.trainer, self.cost, self.budget, self.points = trainer, cost, budget, points
        self.planned = planned_steps(trainer)
        self.curve: list[list[float]] = []
        self.growth_cost = self.spent = self.seconds = 0.0
        self._clock = _CLOCKS.get(cost, time.perf_counter)
        self._step_macs = 0.0
        self._since = self._wall_since = 0.0
        warmup = args.get_warmup_steps(self.planned) / self.planned
        args.warmup_steps = round(warmup * _LENGTH)
        args.max_steps = _LENGTH

    @property
    def share(self) -> float:
        """Share of the budget that is spent."""
        if self.budget is None:
            return float(self.trainer.state.global_step / self.planned)
        return self.spent / self.budget

    # ------------------------------------------------------------------------------------------------------ the hooks
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.max_steps = self.planned
        self.measure_step()
        self._since, self._wall_since = self._clock(), time.perf_counter()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._charge(self._step_macs)
        share = (state.global_step + 1) / self.planned if self.budget is None else self.share
        scheduler = kwargs["lr_scheduler"]
        assert isinstance(scheduler, LambdaLR)  # all of `SCHEDULES`
        scheduler.last_epoch = round(min(share, 1.0) * _LENGTH) - 1  # the Trainer takes the step that is missing

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        share, step = self.share, state.global_step
        # The budget is met to within half a step, where it is known what a step costs.
        over = share + (0.0 if self.budget is None else self._step_macs / self.budget / 2) >= 1
        state.max_steps = step if over else max(step + 1, round(step / share))
        control.should_training_stop = over
        # One measurement stands for several points, where a step or an event is longer than the way between them.
        reached = self.points if over else min(self.points - 1, int(share * self.points + 1e-9))
        if reached > len(self.curve):
            due = control.should_log
            self.curve += [self._measure()] * (reached - len(self.curve))
            control.should_log = due  # a log clears it, but the one of this step is still to come

    # ------------------------------------------------------------------------------------------------------- the costs
    @contextmanager
    def of_event(self) -> Iterator[None]:
        """Charge what happens inside as an event of growth, after which a step costs something else."""
        self._charge(0.0)
        started = self.spent
        if self.cost == "macs":
            with _counting() as counter:
                yield
            self._charge(counter.get_total_flops() / 2)
        else:
            yield
            self._charge(0.0)
        self.growth_cost += self.spent - started
        if self.budget is not None and self.spent > self.budget:
            raise ValueError(
                f"Growth cost more than the budget of the comparison: {self.growth_cost:.3g} of {self.budget:.3g} "
                f"{COSTS[self.cost]}, and the training would end with it. Train longer, or with fewer `probe_samples`."
            )
        self.measure_step()

    def measure_step(self) -> None:
        """Count the multiply-accumulates of a step, at no charge: three forward passes of the first batch."""
        if self.cost != "macs":
            return
        trainer, model = self.trainer, self.trainer.model
        training = model.training
        with private_randomness(trainer.args.seed), torch.no_grad(), _counting() as counter:
            batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
            trainer.compute_loss(model.eval(), batch)
        model.train(training)
        self._step_macs = _PASSES * counter.get_total_flops() / 2 * trainer.args.gradient_accumulation_steps

    def _charge(self, macs: float) -> None:
        now, wall = self._clock(), time.perf_counter()
        self.spent += macs if self.cost == "macs" else now - self._since
        self.seconds += wall - self._wall_since
        self._since, self._wall_since = now, wall

    def _measure(self) -> list[float]:
        """What was spent until now, and the validation loss, at no charge."""
        self._charge(0.0)
        loss = float(self.trainer.evaluate()["eval_loss"])
        if not math.isfinite(loss):
            raise ValueError(
                f"The validation loss is {loss} at step {self.trainer.state.global_step}: nothing can be compared. "
                "Lower the learning rate."
            )
        self._since, self._wall_since = self._clock(), time.perf_counter()
        return [self.spent, loss]
