"""`GrowthCallback`: decides when a model grows inside of HF `Trainer`, delegates, and logs."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import has_length
from transformers.training_args import ParallelMode

from ..growth import GrowthConfig, GrowthEvent, GrowthHistory
from ..models.modeling_saddle import HISTORY_NAME, GrowablePreTrainedModel
from .distributed import Replicas
from .event import Loss, check_growable, growth_event_
from .probe import probe_batches


logger = logging.getLogger(__name__)

# A probe shorter than that shows no progress bar.
_BAR_DELAY_SECONDS = 5.0
# A single process, or DDP.
_SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
)


class GrowthCallback(TrainerCallback, ExportableState):
    """
    Lets a model grow while HF `Trainer` trains it. Pass it in `callbacks` of a [`GrowthTrainer`] or a plain `Trainer`.

    Growth happens at the end of a step, before that step is logged, evaluated and saved. All that is done is done by
    [`growth_event_`] on [`probe_batches`], which a hand-written loop calls in the same way. A plain `Trainer` gives
    its callbacks no access to wrappers and reporters: there, several processes are refused, and the metrics of an
    event are written to `state.log_history` only.

    Args:
        config ([`GrowthConfig`] or `dict`):
            When, where, how and how much to grow.
        probe_dataset (`Dataset`, *optional*):
            Training samples that decisions are based on. Defaults to the training data set. Needed for streams that
            cannot be copied, and for data sets that keep a random generator of their own.
        loss (`Callable`, *optional*):
            Maps model and batch to the mean loss of the batch. Defaults to `compute_loss` of a [`GrowthTrainer`]; in
            a plain `Trainer` to the model's own loss, with the label smoothing of the training arguments.
    """

    def __init__(
        self, config: GrowthConfig | Mapping[str, Any], *, probe_dataset: Any = None, loss: Loss | None = None
    ):
        self.config = config if isinstance(config, GrowthConfig) else GrowthConfig.from_dict(dict(config))
        self.probe_dataset = probe_dataset
        self.loss = loss
        self.trainer: Trainer | None = None  # set by `GrowthTrainer`
        self.events_done = 0
        self._history: dict[str, Any] | None = None

    # --------------------------------------------------------------------------------------------------------- state
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps in `trainer_state.json`."""
        attributes = {"events_done": self.events_done, "_history": self._history}
        return {"args": {"config": self.config.to_dict()}, "attributes": attributes}

    def _restore(self, state: TrainerState, model: GrowablePreTrainedModel) -> None:
        name = type(self).__name__
        if state.global_step == 0:
            # A new training has a schedule of its own; the budget still counts from the model's first event.
            self.events_done, self._history = 0, model.growth_history
        elif name in state.stateful_callbacks:
            for key, value in state.stateful_callbacks[name]["attributes"].items():
                setattr(self, key, value)
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
        self._check(args, model, optimizer, kwargs["train_dataloader"])
        self._restore(state, model)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if not self.config.event_due(self._progress(state), self.events_done):
            return
        # What grows at the very end would not be trained any more; a resumed run that goes on grows then.
        if state.global_step >= state.max_steps or control.should_training_stop:
            return
        model, optimizer, loader = kwargs["model"], kwargs["optimizer"], kwargs["train_dataloader"]
        event = self._grow(args, state, model, optimizer, loader)
        self.events_done += 1
        self._history = model.growth_history
        self._report(args, state, control, event)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs
    ):
        if not args.load_best_model_at_end or state.best_model_checkpoint is None:
            return
        # The best model may be one before an event: its history is the one that was saved beside it.
        path = Path(state.best_model_checkpoint) / HISTORY_NAME
        model.growth_history = GrowthHistory.load(path).to_dict() if path.is_file() else None
        self._history = model.growth_history
        GrowthHistory.from_model(model).check(model)

    # ------------------------------------------------------------------------------------------------------ the work
    def _progress(self, state: TrainerState) -> float:
        return float(state.global_step if self.config.unit == "steps" else state.epoch or 0)

    def _grow(
        self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel, optimizer: Optimizer, loader: Any
    ) -> GrowthEvent:
        wrapped = model if self.trainer is None else self.trainer.model_wrapped
        replicas = Replicas.of(wrapped)
        batches = probe_batches(
            loader.dataset if self.probe_dataset is None else self.probe_dataset,
            self.config,
            event=self.events_done,
            collate_fn=loader.collate_fn,
            device=model.device,
            rank=replicas.rank,
            world_size=replicas.size,
        )
        silent = args.disable_tqdm or not state.is_world_process_zero
        total = len(batches) * 2  # before and after
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
                loss=partial(_ticking, bar, self._loss(args)),
            )
        if args.torch_compile and self.trainer is None and event.layers:
            torch.compiler.reset()  # as `growth_event_` does where it sees the wrapper
        return event

    def _loss(self, args: TrainingArguments) -> Loss:
        if self.loss is not None:
            return self.loss
        if self.trainer is not None:
            trainer = self.trainer
            # A copy, because `compute_loss` may take the labels out of it.
            return lambda model, batch: trainer.compute_loss(model, dict(batch))
        if args.label_smoothing_factor:
            smoother = LabelSmoother(epsilon=args.label_smoothing_factor)
            return lambda model, batch: smoother(model(**batch), batch["labels"])
        return lambda model, batch: model(**batch).loss

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
    def _check(self, args: TrainingArguments, model: nn.Module, optimizer: Optimizer, loader: Any) -> None:
        check_supported(args, self.trainer is not None)
        check_growable(model)
        if self.config.unit == "epochs" and not has_length(loader):
            raise ValueError(
                "A training data set without length has no epochs to count. Use `unit='steps'` in the GrowthConfig."
            )
        if self.trainer is None and args.report_to:
            logger.warning(
                f"{', '.join(args.report_to)} will not see the growth metrics, because a plain Trainer lets no "
                "callback log. Use GrowthTrainer; it takes the same arguments."
            )
        check_optimizer(model, optimizer)


def _ticking(bar: tqdm, loss: Loss, model: nn.Module, batch: Any) -> Any:
    value = loss(model, batch)
    bar.update()
    return value


def lr_ratio(optimizer: Optimizer, peak: float) -> float:
    """
    The learning rate relative to its peak.

    Args:
        optimizer (`Optimizer`): Its first group counts.
        peak (`float`): The peak, where no scheduler has noted the initial rate in the group.
    """
    group = optimizer.param_groups[0]
    highest = float(group.get("initial_lr", peak))
    return float(group["lr"]) / highest if highest > 0 else 1.0


def check_supported(args: TrainingArguments, reaches_wrapper: bool) -> None:
    """
    Verify that a model may grow under the way of training that the arguments ask for.

    Args:
        args (`TrainingArguments`): The arguments.
        reaches_wrapper (`bool`): Whether the trainer is a [`GrowthTrainer`].

    Raises:
        ValueError: If it may not; the message tells what to do.
    """
    kind = args.distributed_state.distributed_type
    if args.deepspeed is not None or kind not in _SUPPORTED:
        raise ValueError(
            f"Models do not grow under {DistributedType.DEEPSPEED if args.deepspeed is not None else kind} in a "
            "Trainer. Use DDP (`torchrun` without `deepspeed` and `fsdp` options), or, where the model must be "
            "sharded, a loop with FSDP2 and `growth_event_sharded_`."
        )
    if args.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
        raise ValueError(
            "Models do not grow under `nn.DataParallel`. Start one process per GPU with `torchrun --nproc_per_node`, "
            "and use GrowthTrainer; or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    if args.parallel_mode != ParallelMode.NOT_PARALLEL and not reaches_wrapper:
        raise ValueError(
            "A callback of a plain Trainer cannot reach the DDP wrapper, without which the processes would drift "
            "apart. Use GrowthTrainer instead of Trainer; it takes the same arguments."
        )


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """
    Verify that an optimizer trains a model.

    Raises:
        ValueError: If it misses a parameter: it was made for other parameters, and those would stay at rest unnoticed.
    """
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    missed = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter not in held
    ]
    present = set(model.parameters())
    if missed and not held <= present:
        raise ValueError(
            f"The optimizer was made for other parameters and does not train {len(missed)} of the model's, such as "
            f"{missed[0]}. The model has changed its shapes since (a checkpoint or the best model was loaded). Set "
            "`trainer.optimizer = trainer.lr_scheduler = None` before `train()`, or use GrowthTrainer, which does it."
        )


def growth_metrics(event: GrowthEvent) -> dict[str, float]:
    """What an event did, as numbers for a log."""
    metrics: dict[str, float] = {
        "growth_neurons": event.neurons,
        "growth_parameters": event.parameters_after,
        "growth_macs": event.macs_after,
        "growth_predicted_change": -event.predicted_gain,
        "growth_seconds": event.seconds,
    }
    if event.loss_before is not None:
        metrics["growth_probe_loss"] = event.loss_before
    if event.loss_before is not None and event.loss_after is not None:
        metrics["growth_measured_change"] = event.loss_after - event.loss_before
    if event.layers:
        values = [layer["eigenvalue"] for layer in event.layers]
        metrics["growth_eigenvalue_min"] = min(value["min"] for value in values)
        metrics["growth_eigenvalue_max"] = max(value["max"] for value in values)
        total = sum(layer["eigenvalue"]["mean"] * layer["chosen"] for layer in event.layers)
        metrics["growth_eigenvalue_mean"] = total / event.neurons
    return metrics


def describe(event: GrowthEvent, number: int) -> str:
    """A line for people."""
    where = f"Growth event {number} at step {event.step} (epoch {event.epoch or 0:.2f})"
    if not event.layers:
        return f"{where}: nothing grows, {event.parameters_after:,} parameters, {event.seconds:.1f} s"
    layers = len({layer["linear"] for layer in event.layers})
    change = ""
    if event.loss_before is not None and event.loss_after is not None:
        change = f", probe loss {event.loss_before:.4f} → {event.loss_after:.4f}"
    ratio = event.parameters_after / event.parameters_before
    return (
        f"{where}: {event.neurons} neurons in {layers} linears by {', '.join(event.operators)}, "
        f"{event.parameters_before:,} → {event.parameters_after:,} parameters (×{ratio:.3f}){change}, "
        f"{event.seconds:.1f} s"
    )
