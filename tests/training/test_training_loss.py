"""The probe measures what the training minimises: its loss is the one that the Trainer logs for the same samples."""

import logging

import pytest
from loss_cases import CASES, Averaged, LayerWise, Summed, averaged, logged_and_probed, summed
from training_cases import (
    Images,
    assert_same_optimizer,
    assert_same_weights,
    events,
    growth,
    losses,
    train,
    trainer_for,
)
from transformers import Trainer, TrainerCallback

from hf_saddle.growth import GrowthHistory
from hf_saddle.training import GrowthCallback, GrowthTrainer


@pytest.mark.thinned(4)
@pytest.mark.parametrize(("accumulation", "probe_batch"), [(1, 6), (2, 4)])
@pytest.mark.parametrize("name", CASES)
def test_the_probe_s_loss_is_the_logged_one(tmp_path, name, probe_batch, accumulation):
    logged, probed = logged_and_probed(tmp_path, probe_batch, accumulation, **CASES[name])
    # In bfloat16 the batches of the probe are other matrix products than those of the training.
    assert probed == pytest.approx(logged, rel=2e-4 if name in ("autocast", "bf16") else 2e-6)


@pytest.mark.parametrize("fields", [{}, {"compute_loss_func": summed}, {"label_smoothing_factor": 0.2}])
def test_a_plain_trainer_that_is_given_to_the_callback_too(tmp_path, fields):
    logged, probed = logged_and_probed(tmp_path, 6, trainer_class=Trainer, **fields)
    assert probed == pytest.approx(logged, rel=2e-6)


def test_the_probe_does_not_disturb_a_training_that_takes_labels_out_of_the_batch(tmp_path):
    without = train(tmp_path / "a", trainer_class=Summed)
    trainer = train(tmp_path / "b", growth(significance=1e9), trainer_class=Summed)
    assert losses(trainer) == losses(without)
    assert_same_weights(trainer.model, without.model)


class Collecting(GrowthTrainer):
    """Means over the passes since the last entry of the log, as TRL's trainers have them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._metrics = {"train": [], "eval": []}

    def compute_loss(self, model, inputs, *args, **kwargs):
        self._metrics["train" if model.training else "eval"].append(float(len(inputs["labels"])))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        super().log({**logs, f"{mode}_passes": float(len(self._metrics[mode]))}, start_time)
        self._metrics[mode].clear()


def test_passes_of_the_probe_are_no_evaluation(tmp_path):
    fields = {"eval_dataset": Images(16), "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    trainer = train(tmp_path, growth(at=[3]), trainer_class=Collecting, max_steps=6, **fields)
    log = trainer.state.log_history
    assert len(events(trainer)) == 1
    assert {entry["eval_passes"] for entry in log if "eval_loss" in entry} == {4.0}
    assert {entry["train_passes"] for entry in log if "loss" in entry} == {1.0}


# ---------------------------------------------------------------------------------------------- what cannot be reached
def assert_refused(trainer, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("fields", [{}, {"compute_loss_func": averaged}, {"label_smoothing_factor": 0.2}])
def test_a_plain_trainer_whose_loss_is_unknown_is_refused(tmp_path, fields):
    callbacks = [GrowthCallback(growth())]
    assert_refused(trainer_for(tmp_path, trainer_class=Trainer, callbacks=callbacks, **fields), "does not tell its")


def test_a_plain_trainer_with_a_loss_of_the_user(tmp_path):
    callbacks = [GrowthCallback(growth(), loss=lambda model, batch: model(**batch).loss)]
    trainer = train(tmp_path / "a", trainer_class=Trainer, callbacks=callbacks)
    assert events(trainer) == events(train(tmp_path / "b", growth()))


def test_the_trainer_of_another_training_is_refused(tmp_path):
    other = trainer_for(tmp_path, trainer_class=Trainer)
    callback = GrowthCallback(growth(), trainer=other)
    assert_refused(trainer_for(tmp_path, trainer_class=Trainer, callbacks=[callback]), "belongs to another trainer")
    assert len(events(train(tmp_path, callbacks=[callback]))) == 3  # a GrowthTrainer takes it over


@pytest.mark.parametrize(("given", "number"), [({}, 1), ({"loss": lambda model, batch: model(**batch).loss}, 0)])
def test_an_overridden_training_step_is_named_unless_the_loss_is_given(tmp_path, caplog, given, number):
    class Timed(GrowthTrainer):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

    with caplog.at_level(logging.WARNING, "hf_saddle.training"):
        train(tmp_path, trainer_class=Timed, callbacks=[GrowthCallback(growth(), **given)], max_steps=1)
    assert sum("overrides `training_step`" in record.getMessage() for record in caplog.records) == number


# ------------------------------------------------------------------------------- subclasses that do not call a base
class Reporter(TrainerCallback):
    """Notes at which steps growth was reported."""

    def __init__(self):
        self.steps = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.steps += [state.global_step] * ("growth_event" in logs)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("trainer_class", [LayerWise, Trainer])
def test_growth_is_reported(tmp_path, trainer_class):
    reporter = Reporter()
    train(tmp_path, growth(), callbacks=[reporter], trainer_class=trainer_class)
    assert reporter.steps == [3, 6, 9]


def test_an_own_optimizer_trains_what_grew_and_follows_later_trainings(tmp_path):
    """A second training starts from the best, smaller model, with another optimizer."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    saving = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_for(tmp_path, growth(), trainer_class=LayerWise, eval_dataset=Images(16), **best, **saving)
    trainer.train()
    assert trainer.state.best_global_step < 12
    first = trainer.optimizer
    trainer.args.load_best_model_at_end = False
    trainer.train()
    assert trainer.optimizer is not first
    held = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(trainer.model.parameters())
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [5e-3, 1e-2]
    GrowthHistory.from_model(trainer.model).check(trainer.model)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("restore", [False, True])
def test_a_run_with_an_own_optimizer_and_loss_resumes_exactly(tmp_path, restore):
    class Both(LayerWise, Averaged):
        pass

    whole = train(tmp_path / "a", growth(), trainer_class=Both, save_strategy="steps", save_steps=4)
    fields = {"trainer_class": Both, "restore_callback_states_from_checkpoint": restore}
    resumed = train(tmp_path / "b", growth(), f"{tmp_path}/a/checkpoint-4", **fields)
    assert events(resumed) == events(whole) and losses(resumed) == losses(whole)
    assert_same_weights(resumed.model, whole.model)
    assert_same_optimizer(resumed.optimizer, whole.optimizer)
