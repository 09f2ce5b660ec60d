"""`GrowthCallback`: decides when a model grows inside of HF `Trainer`, delegates, and logs."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import has_length

from ..growth import GrowthConfig, GrowthEvent, GrowthHistory
from ..growth.line_search import FACTORS
from ..growth.rebind import same_parameters
from ..models.history_file import HISTORY_NAME
from ..models.modeling_saddle import GrowablePreTrainedModel
from .checks import check_data, check_loss, check_optimizer, check_parameters, check_supported
from .distributed import Replicas, renew_wrapper_
from .event import check_growable, growable_paths, growth_event_
from .followers import adopt_history_, check_followers
from .loss import training_loss
from .probe import Loss, event_seed, private_randomness, probe_batches
from .rebind import rebind_
from .reports import describe, growth_metrics, lr_ratio
from .sampling import makes_batches, training_indices


logger = logging.getLogger(__name__)

# A probe shorter than that shows no progress bar.
_BAR_DELAY_SECONDS = 5.0


class GrowthCallback(TrainerCallback, ExportableState):
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
        self.config = config if isinstance(config, GrowthConfig) else GrowthConfig.from_dict(dict(config))
        self.probe_dataset = probe_dataset
        self.loss = loss
        self.followers = tuple(followers)
        self.trainer = trainer
        self.events_done = 0
        self._history: dict[str, Any] | None = None
        self._given: list[str] = []
        self._held: dict[str, nn.Parameter] = {}  # what the optimizer trains, by name

    # --------------------------------------------------------------------------------------------------------- state
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps in `trainer_state.json`."""
        attributes = {"events_done": self.events_done, "_history": self._history, "_given": self._arguments()}
        return {"args": {"config": self.config.to_dict()}, "attributes": attributes}

    def _arguments(self) -> list[str]:
        """What was given and JSON cannot hold."""
        given = {"probe_dataset": self.probe_dataset, "loss": self.loss, "followers": self.followers or None}
        return [name for name, value in given.items() if value is not None]

    def _restore(self, state: TrainerState, model: GrowablePreTrainedModel) -> None:
        name = type(self).__name__
        if state.global_step == 0:
            # A new training has a schedule of its own; the budget still counts from the model's first event.
            self.events_done, self._history = 0, model.growth_history
        elif name in state.stateful_callbacks:
            saved = state.stateful_callbacks[name]
            for key, value in saved["attributes"].items():
                setattr(self, key, value)
            self._note_changes(saved["args"]["config"])
            lost = [argument for argument in self._given if argument not in self._arguments()]
            if lost:
                raise ValueError(
                    f"The run that is resumed gave `{lost[0]}` to GrowthCallback. Give it again, or its events would "
                    "be other ones; `restore_callback_states_from_checkpoint` keeps it in a GrowthTrainer only."
                )
        else:
            self.events_done, self._history = self._missed(state), model.growth_history
            logger.warning(
                f"The checkpoint was written without a GrowthCallback: {self.events_done} events that were due before "
                f"step {state.global_step} are left out."
            )
        model.growth_history = self._history
        history = GrowthHistory.from_model(model)
        if not history.matches(model):
            history.check(model)
        state.stateful_callbacks[name] = self.state()

    def _note_changes(self, saved: dict[str, Any]) -> None:
        changes = [
            f"{name} {saved[name]!r} → {value!r}"
            for name, value in self.config.to_dict().items()
            if saved.get(name, value) != value
        ]
        if changes:
            logger.warning(
                f"The resumed run grows by another GrowthConfig from now on: {', '.join(changes)}. The "
                f"{self.events_done} events that it had count."
            )

    def _missed(self, state: TrainerState) -> int:
        missed = 0
        while missed <= state.global_step and self.config.event_due(self._progress(state), missed):
            missed += 1
        return missed

    # -------------------------------------------------------------------------------------------------------- events
    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model=None,
        optimizer=None,
        **kwargs,
    ):
        self._check(args, state, model, optimizer, kwargs["train_dataloader"])
        if self.trainer is not None:
            renew_wrapper_(self.trainer.model_wrapped)
        self._restore(state, model)
        adopt_history_(model, self.followers)
        self._held = dict(model.named_parameters())

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.follow_(args, state, kwargs["model"], kwargs["optimizer"])

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if not same_parameters(kwargs["model"], self._held):
            raise RuntimeError(
                "The model took other shapes after its gradients were computed, which are lost. Load checkpoints "
                "between two steps, for instance in `on_step_end`."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if not self.config.event_due(self._progress(state), self.events_done):
            return
        # What grows at the very end would not be trained any more; a resumed run that goes on grows then.
        if state.global_step >= state.max_steps or control.should_training_stop:
            return
        model, optimizer, loader = kwargs["model"], kwargs["optimizer"], kwargs["train_dataloader"]
        self.follow_(args, state, model, optimizer)
        event = self._grow(args, state, model, optimizer, loader)
        self._held = dict(model.named_parameters())
        self.events_done += 1
        self._history = model.growth_history
        self._report(args, state, control, event)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs
    ):
        self._held = {}
        if not args.load_best_model_at_end or state.best_model_checkpoint is None:
            return
        # The best model may be one before an event: its history is the one that was saved beside it.
        path = Path(state.best_model_checkpoint) / HISTORY_NAME
        model.growth_history = GrowthHistory.load(path).to_dict() if path.is_file() else None
        self._history = model.growth_history
        GrowthHistory.from_model(model).check(model)

    # ------------------------------------------------------------------------------------------------------ the work
    def follow_(
        self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel, optimizer: Optimizer | None
    ) -> None:
        """Make optimizer, wrappers and history follow a model that took other shapes by `load_state_dict`."""
        if optimizer is None or not self._held or same_parameters(model, self._held):
            return
        before = len(GrowthHistory.from_model(model))
        wrapped = model if self.trainer is None else self.trainer.model_wrapped
        changes = rebind_(wrapped, optimizer, self._held, followers=self.followers)
        if args.torch_compile and self.trainer is None:
            torch.compiler.reset()
        self._held, self._history = dict(model.named_parameters()), model.growth_history
        logger.warning(
            f"Parameters of the model were replaced outside of a growth before step {state.global_step + 1} (a "
            "checkpoint of other shapes was loaded). The optimizer goes on with those of the model: "
            f"{len(changes.replaced)} took the place of others, {len(changes.added)} came, {len(changes.removed)} "
            f"went; what has another shape starts without state. The history goes from {before} to "
            f"{len(GrowthHistory.from_model(model))} events; the {self.events_done} that happened are not repeated."
        )

    def _progress(self, state: TrainerState) -> float:
        return float(state.global_step if self.config.unit == "steps" else state.epoch or 0)

    def _grow(
        self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel, optimizer: Optimizer, loader: Any
    ) -> GrowthEvent:
        wrapped = model if self.trainer is None else self.trainer.model_wrapped
        replicas = Replicas.of(wrapped)
        batches = self._draw(loader, replicas, model.device)
        loss = self.loss
        if loss is None and self.trainer is not None:
            loss = training_loss(self.trainer, batches, replicas)
        assert loss is not None  # `check_loss`
        silent = args.disable_tqdm or not state.is_world_process_zero
        # Before and after; and at most the slopes, the factors and the factor 0 of a line search.
        total = len(batches) * (2 + (len(FACTORS) + 2) * self.config.line_search)
        with tqdm(total=total, desc="Growth", delay=_BAR_DELAY_SECONDS, leave=False, disable=silent) as bar:
            event = growth_event_(
                wrapped,
                optimizer,
                batches,
                self.config,
                event=self.events_done,
                step=state.global_step,
                epoch=state.epoch,
                lr_ratio=lr_ratio(optimizer, args.learning_rate),
                loss=partial(_ticking, bar, loss),
                followers=self.followers,
            )
        if args.torch_compile and self.trainer is None and event.layers:
            torch.compiler.reset()  # as `growth_event_` does where it sees the wrapper
        return event

    def _draw(self, loader: Any, replicas: Replicas, device: torch.device) -> list[Any]:
        """The probe batches of this process, as the training would feed them to its loss."""
        dataset, indices = self.probe_dataset, None
        if dataset is None:
            dataset = loader.dataset
            read = partial(training_indices, loader, self.config, event=self.events_done)
            # Of the first process: a sampler may know its rank.
            indices = replicas.from_first(replicas.together("Reading the sampler", read))

        trainer = self.trainer
        collate_fn = loader.collate_fn if trainer is None or makes_batches(loader) else trainer.data_collator

        def draw() -> list[Any]:
            batches = probe_batches(
                dataset,
                self.config,
                event=self.events_done,
                indices=indices,
                collate_fn=collate_fn,
                device=device,
                rank=replicas.rank,
                world_size=replicas.size,
            )
            if trainer is None:
                return batches
            with private_randomness(event_seed(self.config, self.events_done) + replicas.rank):
                return [trainer._prepare_inputs(batch) for batch in batches]

        return replicas.together("Drawing the probe samples", draw)

    # --------------------------------------------------------------------------------------------------------- output
    def _report(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, event: GrowthEvent
    ) -> None:
        metrics = {"growth_event": self.events_done, **growth_metrics(event)}
        if self.trainer is None:
            state.log_history.append({**metrics, "epoch": state.epoch, "step": state.global_step})
        else:
            due = control.should_log
            self.trainer.log(metrics)
            control.should_log = due  # a log clears it, but the one of this step is still to come
        if not state.is_world_process_zero:
            return
        line = describe(event, self.events_done)
        if args.disable_tqdm:
            logger.info(line)
        else:
            tqdm.write(line)

    # --------------------------------------------------------------------------------------------------------- checks
    def _check(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, optimizer: Optimizer, loader: Any
    ) -> None:
        check_supported(args, self.trainer is not None)
        inner = check_growable(model)
        paths = growable_paths(inner, self.config)
        check_followers(inner, self.followers)
        # How `Trainer` keeps the states of callbacks of one class.
        if isinstance(state.stateful_callbacks.get(type(self).__name__), list):
            raise ValueError("A model grows by one GrowthCallback; leave out the others.")
        check_loss(self.trainer, state, self.loss)
        if self.config.unit == "epochs" and not has_length(loader):
            raise ValueError(
                "A training data set without length has no epochs to count. Use `unit='steps'` in the GrowthConfig."
            )
        if self.trainer is None and args.report_to:
            logger.warning(
                f"{', '.join(args.report_to)} will not see the growth metrics, because a plain Trainer lets no "
                "callback log. Use GrowthTrainer, or give the callback the `trainer`."
            )
        check_data(loader, self.trainer, self.probe_dataset, self.config)
        check_optimizer(model, optimizer)
        check_parameters(inner, paths, optimizer)


def _ticking(bar: tqdm, loss: Loss, model: nn.Module, batch: Any) -> Any:
    value = loss(model, batch)
    bar.update()
    return value
