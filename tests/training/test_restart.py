"""A training whose memory ran out ends as one that was started with the smaller batch size."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_cases import assert_same_optimizer, assert_same_weights, events, growth, losses, tiny, train, trainer_for
from transformers import Trainer, TrainerCallback, default_data_collator

from hf_saddle.growth import GrowthHistory
from hf_saddle.training import GrowthCallback, GrowthTrainer


class OutOfMemory(GrowthTrainer):
    """Runs out of memory once at each of some steps."""

    fails_at = (5,)

    def training_step(self, *args, **kwargs):
        left = list(self.fails_at)
        if left and self.state.global_step == left[0]:
            self.fails_at = tuple(left[1:])
            raise RuntimeError("CUDA out of memory.")
        return super().training_step(*args, **kwargs)


def assert_same_end(trainer, other) -> None:
    assert losses(trainer) == losses(other) and events(trainer) == events(other)
    assert_same_weights(trainer.model, other.model)
    assert_same_optimizer(trainer.optimizer, other.optimizer)
    assert trainer.model.config == other.model.config
    GrowthHistory.from_model(trainer.model).check(trainer.model)


def failing(*steps):
    return type("OutOfMemory", (OutOfMemory,), {"fails_at": steps})


AUTO = {"auto_find_batch_size": True}


@pytest.mark.parametrize(("steps", "size"), [((1,), 7), ((5,), 7), ((8, 4), 6)], ids=["early", "late", "twice"])
def test_the_end_is_that_of_a_run_with_the_smaller_batch_size(tmp_path, steps, size):
    trainer = train(tmp_path / "a", growth(), trainer_class=failing(*steps), **AUTO)
    assert trainer._train_batch_size == size and trainer._go_back is None
    assert_same_end(trainer, train(tmp_path / "b", growth(), per_device_train_batch_size=size))
    assert len(events(trainer)) == 3


def test_memory_that_runs_out_within_an_event(tmp_path):
    class Collator:
        failed = False

        def __call__(self, samples):
            if not self.failed and len(samples) > 8:  # the probe's batches are the larger ones
                type(self).failed = True
                raise RuntimeError("CUDA out of memory.")
            return default_data_collator(samples)

    trainer = train(tmp_path / "a", growth(), data_collator=Collator(), **AUTO)
    assert Collator.failed
    assert_same_end(trainer, train(tmp_path / "b", growth(), per_device_train_batch_size=7))


def test_branches_of_another_kind_are_forgotten(tmp_path):
    config = growth(criterion="depth", operator="residual_pair")
    trainer = train(tmp_path / "a", config, trainer_class=OutOfMemory, **AUTO)
    assert_same_end(trainer, train(tmp_path / "b", config, per_device_train_batch_size=7))


def own_optimizer(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # Not at its beginning.
    model(pixel_values=torch.ones(2, 3, 8, 8), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


@pytest.mark.parametrize("steps", [(1,), (8, 4)], ids=["early", "twice"])
def test_an_optimizer_of_the_user_starts_again_too(tmp_path, steps):
    runs = []
    for folder, fields in (("a", {"trainer_class": failing(*steps), **AUTO}), ("b", {})):
        model = tiny()
        fields = fields or {"per_device_train_batch_size": runs[0]._train_batch_size}
        runs.append(train(tmp_path / folder, growth(), model=model, optimizers=own_optimizer(model), **fields))
    assert_same_end(*runs)
    assert runs[0].lr_scheduler.state_dict() == runs[1].lr_scheduler.state_dict()


def test_a_resumed_run_and_a_second_training(tmp_path):
    whole = train(tmp_path / "a", growth(), save_strategy="steps", save_steps=4, per_device_train_batch_size=8, **AUTO)
    checkpoint = str(tmp_path / "a" / "checkpoint-4")
    resumed = trainer_for(tmp_path / "b", growth(), trainer_class=failing(6), **AUTO)
    resumed.train(resume_from_checkpoint=checkpoint)
    expected = trainer_for(tmp_path / "c", growth(), per_device_train_batch_size=7)
    expected.train(resume_from_checkpoint=checkpoint)
    assert_same_end(resumed, expected)
    assert losses(resumed)[:4] == losses(whole)[:4]


def test_a_follower_starts_again_too(tmp_path):
    class Average(TrainerCallback):
        def __init__(self, model):
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.ema.update_parameters(model)

    averages = []
    for folder, fields in (("a", {"trainer_class": OutOfMemory, **AUTO}), ("b", {"per_device_train_batch_size": 7})):
        model = tiny()
        averages.append(Average(model))
        callbacks = [GrowthCallback(growth(), followers=[averages[-1].ema.module]), averages[-1]]
        train(tmp_path / folder, model=model, callbacks=callbacks, **fields)
    first, second = (average.ema.module for average in averages)
    assert first.shapes() == second.shapes()


def test_nothing_is_copied_without_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_saddle.training.trainer.note_start", lambda trainer: pytest.fail("copied"))
    train(tmp_path, growth(at=[3]), max_steps=4)


def test_a_plain_trainer_with_the_option_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Use GrowthTrainer, which goes back to the start"):
        train(tmp_path, growth(), trainer_class=Trainer, **AUTO)
