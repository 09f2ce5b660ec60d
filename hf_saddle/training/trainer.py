"""`GrowthTrainer`: a `Trainer` whose model may change its shapes, and whose checkpoints are whole or not used."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints
from transformers.utils import CONFIG_NAME

from ..growth.optimizer.state import held_parameters
from ..hub import ModelCardMixin
from ..hub.measured import OTHER_DATA
from ..models.json_files import read_json
from ..models.loading import fit_blocks_
from .callback import GrowthCallback
from .resuming.checkpoints import check_filled, discard, last_whole_checkpoint, missing_parts, write_manifest
from .resuming.restart import note_start
from .sharding.trainer_sharded import SHARDED_OPTIMIZER, before_sharding_, save_shapes
from .wrappers import renew_wrapper_


logger = logging.getLogger(__name__)


class GrowthTrainer(ModelCardMixin, Trainer):  # type: ignore[misc]
    """
    HF `Trainer` for models that grow; it takes the same arguments.

    Needed for several processes (DDP), for reporters such as TensorBoard to see the growth, for models that change
    their shapes between two calls of `train()`, for the model card, and for checkpoints that survive a killed job:
    one that was not finished is never resumed from. `train(resume_from_checkpoint=True)` takes the last whole one.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._optimizer_was_given = self.optimizer is not None
        self._go_back: Callable[[], None] | None = None

    @property
    def growth_callbacks(self) -> list[GrowthCallback]:
        """The callbacks that let the model grow."""
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, GrowthCallback)]

    # ------------------------------------------------------------------------------------------------------ resuming
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """
        As in `Trainer`.

        Raises:
            ValueError: If the checkpoint is not whole, or, for `True`, there is no whole one.
        """
        if resume_from_checkpoint:
            resume_from_checkpoint = self._whole_checkpoint(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._go_back = None

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # `auto_find_batch_size` calls this again with a smaller batch size each time that the memory runs out.
        if self.args.auto_find_batch_size and self.growth_callbacks:
            if self._go_back is None:
                self._go_back = note_start(self)
            else:
                self._go_back()
        return super()._inner_training_loop(*args, **kwargs)

    def _whole_checkpoint(self, wanted: str | bool) -> str:
        # The first process chooses, in case the others see another disk.
        (last,) = broadcast_object_list([last_whole_checkpoint(self.args.output_dir)])
        if wanted is True and last is None:
            raise ValueError(f"There is no whole checkpoint in {self.args.output_dir}; train from the start.")
        folder = str(last if wanted is True else wanted)
        missing = missing_parts(folder)
        if missing:
            raise ValueError(
                f"The checkpoint {folder} is not whole: {', '.join(missing)} missing or truncated. The last whole one "
                f"in {self.args.output_dir} is {last}."
            )
        if not any(Path(folder, name).exists() for name in (OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SHARDED_OPTIMIZER)):
            logger.warning(
                f"The checkpoint {folder} was saved without optimizer (`save_only_model`): the optimizer and the "
                "random numbers start anew, and the run is not the one that an uninterrupted training would be."
            )
        return folder

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Weights do not tell what kinds the blocks are of, where these differ.
        # Checkpoints of adapters have none, and those of another model are refused with their weights.
        config = Path(resume_from_checkpoint, CONFIG_NAME)
        if config.is_file() and read_json(config).get("model_type") == type(self.model.config).model_type:
            fit_blocks_(self.model, type(self.model.config).from_pretrained(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise ValueError(
                f"The optimizer of {checkpoint} trains other parameters than this run's ({error}). Where only some "
                "are trained, a model without the checkpoint's branches cannot tell which of them are: make the model "
                "by `from_pretrained` of the checkpoint, and set `requires_grad` as in the run that wrote it."
            ) from error

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        check_filled(self.model, load_result)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # From a checkpoint of the last step, in the middle of an epoch, `Trainer` would train one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_callback_state(self) -> None:
        # Callbacks are re-created from their state, which holds only what JSON can.
        given = self.growth_callbacks
        super()._load_callback_state()
        for old, new in zip(given, self.growth_callbacks, strict=True):
            new.probe_dataset, new.loss, new.followers = old.probe_dataset, old.loss, old.followers

    # -------------------------------------------------------------------------------------------------------- saving
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        for callback in self.growth_callbacks:  # in case another callback has loaded other shapes in this step
            callback.follow_(self.args, self.state, self.model, self.optimizer)
        folder = f"{self._get_output_dir(trial=trial)}/{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit = self.args.save_total_limit
        if self.args.should_save:
            discard(folder)  # of an earlier run that had come so far
        self.accelerator.wait_for_everyone()
        # Older checkpoints go only when this one is whole.
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            torch.save(self.args, Path(folder, TRAINING_ARGS_NAME))  # with its limit
        if self.is_fsdp_enabled and self.args.should_save:
            save_shapes(self.model, folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(folder)
            rotate_checkpoints(
                self._get_output_dir(trial=trial), limit, self.state.best_model_checkpoint, use_mtime=True
            )

    # ------------------------------------------------------------------------------------------- optimizer and wrapper
    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        # After a checkpoint has given the model its shapes and callbacks have been re-created, and before anything is
        # made for the training; `create_optimizer` is often overridden without `super()`.
        for callback in self.growth_callbacks:
            callback.trainer = self
        if self.is_fsdp_enabled:
            before_sharding_(self, resume_from_checkpoint)
        self._renew()
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _renew(self) -> None:
        """Renew an optimizer or a DDP wrapper that was made for earlier shapes of the model."""
        made_here = None if self._optimizer_was_given else self.optimizer
        if made_here is not None and not set(held_parameters(made_here)) <= set(self.model.parameters()):
            self.optimizer = None
        renew_wrapper_(self.model_wrapped)

    # ---------------------------------------------------------------------------------------------------------- card
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As in `Trainer`; the log notes what is of other data than `eval_dataset`, which no card calls validation."""
        before = len(self.state.log_history)
        metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        own = eval_dataset is None or eval_dataset is self.eval_dataset or isinstance(eval_dataset, str)
        if metric_key_prefix == "eval" and not own:
            for entry in self.state.log_history[before:]:
                entry[OTHER_DATA] = True
        return metrics

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As in `Trainer`; the card tells what grew, when and why."""
        for callback in self.growth_callbacks:
            self.card_facts = {"growth": callback.config} | self.card_facts
        super().create_model_card(*args, **kwargs)
