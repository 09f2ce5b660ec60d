"""`GrowthCallback`: decides when a model grows inside of HF `Trainer`, delegates, and logs."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..curvature.loss import Loss
from ..growth import GrowthConfig, GrowthEvent, GrowthHistory
from ..growth.records.timing_record import Timing
from ..growth.surgery.blocks import freeze_as_before_
from ..hub.measured import CLOCK
from ..models.modeling_saddle import GrowablePreTrainedModel
from .artefacts import share_artefacts
from .checks.start_checks import Training, check_start
from .course import Course
from .events.followers import adopt_history_
from .events.loss import metrics_aside
from .reports import announce, describe, growth_metrics, say, size_metrics
from .resuming.held import Held
from .resuming.trainer_state import check_given, left_out, note_changes, saved_history
from .trainer_event import time_training, trainer_event_
from .wrappers import renew_wrapper_


class GrowthCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """
    Lets a model grow while HF `Trainer` trains it. Pass it in `callbacks` of a [`GrowthTrainer`].

    Growth happens at the end of a step, before that step is logged, evaluated and saved. All that is done is done by
    [`growth_event_`] on [`probe_batches`], which a hand-written loop calls in the same way. The samples are drawn from
    those of an epoch of the training's sampler, and the loss is that of the training.

    A plain `Trainer` does not tell its callbacks its loss, its wrappers and its reporters. Give it to the callback,
    or give the callback the `loss`, in which case several processes are refused, and the metrics of an event are
    written to `state.log_history` only:

    ```python
    trainer.add_callback(GrowthCallback(config, trainer=trainer))
    ```

    Args:
        config ([`GrowthConfig`] or `dict`):
            When, where, how and how much to grow.
        probe_dataset (`Dataset`, *optional*):
            Training samples that decisions are based on, each equally likely. Defaults to what the training's sampler
            takes of the training data set. Needed for streams and samplers that cannot be copied, and for data sets
            that keep a random generator of their own.
        loss (`Callable`, *optional*):
            Maps model and batch to the mean loss of the batch. Defaults to the trainer's, see [`training_loss`].
        followers (`Sequence`, *optional*):
            Models that grow by the same plans, at the same time or not at all, such as the `module` of a
            `torch.optim.swa_utils.AveragedModel`. They must have the shapes of the model when the training begins.
        trainer (`Trainer`, *optional*):
            The trainer that the callback is added to. A [`GrowthTrainer`] sets it.
    """

    def __init__(
        self,
        config: GrowthConfig | Mapping[str, Any],
        *,
        probe_dataset: Any = None,
        loss: Loss | None = None,
        followers: Sequence[GrowablePreTrainedModel] = (),
        trainer: Trainer | None = None,
    ):
        self.config = config if isinstance(config, GrowthConfig) else GrowthConfig.from_dict(config)
        self.probe_dataset = probe_dataset
        self.loss = loss
        self.followers = tuple(followers)
        self.trainer = trainer
        self.events_done = 0
        self._history: dict[str, Any] | None = None
        self._given: list[str] = []
        self._timing: dict[str, Any] | None = None
        self._held = Held()
        self._started = time.perf_counter()

    # --------------------------------------------------------------------------------------------------------- state
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps in `trainer_state.json`."""
        attributes = {name: getattr(self, name) for name in ("events_done", "_history", "_timing")}
        attributes["_given"] = self._arguments()
        return {"args": {"config": self.config.to_dict()}, "attributes": attributes}

    def _known(self) -> dict[str, Any]:
        """What was given beside the config."""
        return {name: getattr(self, name) for name in ("trainer", "loss", "probe_dataset", "followers")}

    def _arguments(self) -> list[str]:
        """What was given and JSON cannot hold."""
        given = {"probe_dataset": self.probe_dataset, "loss": self.loss, "followers": self.followers or None}
        return [name for name, value in given.items() if value is not None]

    def _restore(self, course: Course, state: TrainerState, model: GrowablePreTrainedModel) -> None:
        name = type(self).__name__
        if state.global_step == 0:
            # A new training has a schedule of its own; the budget still counts from the model's first event.
            self.events_done, self._history, self._timing = 0, model.growth_history, None
        elif name in state.stateful_callbacks:
            saved = state.stateful_callbacks[name]
            for key, value in saved["attributes"].items():
                setattr(self, key, value)
            note_changes(saved["args"]["config"], self.config, self.events_done)
            check_given(self._given, self._arguments())
        else:
            self.events_done, self._history = left_out(self.config, course, state.global_step), model.growth_history
        model.growth_history = self._history
        history = GrowthHistory.leading_to(model)
        if state.global_step > 0:
            freeze_as_before_(model, history)
        state.stateful_callbacks[name] = self.state()

    # -------------------------------------------------------------------------------------------------------- events
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, course = kwargs["model"], Course.of(args, state, kwargs["train_dataloader"])
        # How `Trainer` keeps the states of callbacks of one class.
        if isinstance(state.stateful_callbacks.get(type(self).__name__), list):
            raise ValueError("A model grows by one GrowthCallback; leave out the others.")
        check_start(
            (args, state, model, kwargs["optimizer"], kwargs["train_dataloader"]),
            self.config,
            **self._known(),
        )
        if self.trainer is not None:
            renew_wrapper_(self.trainer.model_wrapped)
        self._restore(course, state, model)
        adopt_history_(model, self.followers)
        self._held.note_(model)
        self._time(state, model, kwargs["train_dataloader"])
        announce(course, self.config, args, state, model, self.events_done)
        self._started = time.perf_counter() - max((entry.get(CLOCK, 0.0) for entry in state.log_history), default=0.0)
        if state.global_step == 0:
            self._log(state, control, size_metrics(model, self.config))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.follow_(args, state, kwargs["model"], kwargs["optimizer"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._held.fits(kwargs["model"]):
            raise RuntimeError(
                "The model took other shapes after its gradients were computed, which are lost. Load checkpoints "
                "between two steps, for instance in `on_step_end`."
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        course = Course.of(args, state, kwargs["train_dataloader"])
        if not self.config.event_due(course.progress(self.config, state.global_step), self.events_done):
            return
        # What grows at the very end would not be trained any more; a resumed run that goes on grows then.
        if state.global_step >= state.max_steps or control.should_training_stop:
            return
        model, optimizer, loader = kwargs["model"], kwargs["optimizer"], kwargs["train_dataloader"]
        self.follow_(args, state, model, optimizer)
        # Those that do not fall inside of the training leave their share of the budget to the others.
        to_come = len(course.events(self.config, state.global_step - 1, self.events_done))
        event = self._grow((args, state, model, optimizer, loader), to_come)
        self._held.note_(model)
        self.events_done += 1
        self._history = model.growth_history
        metrics = {"growth_event": self.events_done, **growth_metrics(event)}
        seconds = [entry["growth_seconds"] for entry in state.log_history if "growth_seconds" in entry]
        share = (sum(seconds) + event.seconds) / self._clock()
        self._log(state, control, metrics | size_metrics(model, self.config) | {"growth_time_share": share})
        say(describe(event, self.events_done), args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._held.forget_()
        if not args.load_best_model_at_end or state.best_model_checkpoint is None:
            return
        model = kwargs["model"]
        # The best model may be one before an event: its history is the one that was saved beside it.
        self._history = model.growth_history = saved_history(state.best_model_checkpoint)
        GrowthHistory.from_model(model).check(model)

    # ------------------------------------------------------------------------------------------------------ the work
    def _clock(self) -> float:
        """Seconds of the training so far; of a resumed one, those before its last log too."""
        return time.perf_counter() - self._started

    def follow_(
        self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel, optimizer: Optimizer | None
    ) -> None:
        """Make optimizer, wrappers and history follow a model that took other shapes by `load_state_dict`."""
        wrapped = model if self.trainer is None else self.trainer.model_wrapped
        followed = self._held.follow_(
            model, wrapped, optimizer, self.followers, events_done=self.events_done, step=state.global_step + 1
        )
        if followed:
            self._history = model.growth_history
            if args.torch_compile and self.trainer is None:
                torch.compiler.reset()

    def _time(self, state: TrainerState, model: GrowablePreTrainedModel, loader: DataLoader[Any]) -> None:
        """Measure what growth takes, where seconds limit it, before anything grows: resumed runs go by the same."""
        if self.config.budget_unit != "seconds" or self._timing or GrowthHistory.from_model(model).timing:
            return
        timing = time_training(model, loader, self.config, self.trainer, self.loss, self.probe_dataset)
        self._timing = timing.to_dict()
        state.stateful_callbacks[type(self).__name__] = self.state()

    def _grow(self, training: Training, to_come: int) -> GrowthEvent:
        return trainer_event_(
            *training,
            self.config,
            event=self.events_done,
            to_come=to_come,
            **self._known(),
            timing=Timing.from_dict(self._timing),
        )

    # --------------------------------------------------------------------------------------------------------- output
    def _log(self, state: TrainerState, control: TrainerControl, metrics: dict[str, float]) -> None:
        if self.trainer is None:
            now = {"epoch": state.epoch, "step": state.global_step, CLOCK: self._clock()}
            state.log_history.append(metrics | now)
            return
        due = control.should_log  # a log clears it, but the one of this step is still to come
        with metrics_aside(self.trainer):
            self.trainer.log(metrics)
        control.should_log = due

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._held:  # an evaluation before or after the training
            return
        entry = state.log_history[-1]
        entry[CLOCK] = self._clock()
        if "train_runtime" not in entry:
            return
        # The last that is logged of a training; when `on_train_end` comes, reporters have closed.
        model = kwargs["model"]
        grown = sum(entry.get("growth_seconds", 0.0) for entry in state.log_history)
        end = {"growth_events": float(self.events_done), "growth_time_share": grown / self._clock()}
        self._log(state, control, size_metrics(model, self.config) | end)
        if self.trainer is not None and state.is_world_process_zero:
            share_artefacts(self.trainer.callback_handler.callbacks, model, state)
