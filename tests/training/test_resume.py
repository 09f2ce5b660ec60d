"""A resumed run equals the uninterrupted one to the bit, wherever it starts; damaged checkpoints are not used."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from training_cases import (
    Images,
    Stream,
    assert_same_optimizer,
    assert_same_weights,
    events,
    growth,
    losses,
    tiny,
    train,
    trainer_for,
)
from transformers import AutoModelForImageClassification, Trainer

from hf_saddle.growth import GrowthHistory
from hf_saddle.training import GrowthCallback, GrowthTrainer
from hf_saddle.training.resuming.checkpoints import (
    MANIFEST_NAME,
    discard,
    last_whole_checkpoint,
    missing_parts,
    write_manifest,
)


SAVING = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run of twelve steps and three events that saved all its steps, with dropout."""
    folder = tmp_path_factory.mktemp("full")
    return train(folder, growth(), **SAVING)


def checkpoint(trainer, step: int) -> str:
    return f"{trainer.args.output_dir}/checkpoint-{step}"


def assert_same_run(trainer, other) -> None:
    assert losses(trainer) == losses(other)
    assert events(trainer) == events(other)
    assert_same_weights(trainer.model, other.model)
    assert_same_optimizer(trainer.optimizer, other.optimizer)
    GrowthHistory.from_model(trainer.model).check(trainer.model)


# 2: before all growth; 3: right after the first; 4: between; 8: before the last; 9, 11: after it.
@pytest.mark.thinned(5)
@pytest.mark.parametrize("step", [2, 3, 4, 8, 9, 11])
@pytest.mark.parametrize("trainer_class", [GrowthTrainer, Trainer])
def test_resuming_from_the_small_model(full, tmp_path, step, trainer_class):
    resumed = train(tmp_path, growth(), checkpoint(full, step), trainer_class=trainer_class)
    assert_same_run(resumed, full)


@pytest.mark.parametrize("step", [2, 8])
def test_resuming_with_the_grown_model(full, tmp_path, step):
    """The model in memory may be larger or smaller than the checkpoint."""
    model = AutoModelForImageClassification.from_pretrained(checkpoint(full, 6))
    resumed = train(tmp_path, growth(), checkpoint(full, step), model=model)
    assert_same_run(resumed, full)


def test_resuming_a_finished_run_trains_no_more(full, tmp_path):
    assert_same_run(train(tmp_path, growth(), checkpoint(full, 12)), full)


def test_resuming_in_the_same_trainer(tmp_path):
    trainer = trainer_for(tmp_path, growth(), **SAVING)
    trainer.train()
    first, grown = losses(trainer), events(trainer)
    trainer.train(resume_from_checkpoint=checkpoint(trainer, 2))
    assert losses(trainer) == first and events(trainer) == grown


def test_resuming_in_epochs_with_accumulation(tmp_path):
    fields = {"gradient_accumulation_steps": 2, "max_steps": -1, "num_train_epochs": 3, **SAVING}
    config = growth(at=[0.5, 1.5, 2.5], unit="epochs")
    whole = train(tmp_path / "a", config, **fields)
    assert [event["epoch"] for event in events(whole)] == [0.5, 1.5, 2.5]
    for step in (1, 5):
        assert_same_run(train(tmp_path / f"b{step}", config, checkpoint(whole, step), **fields), whole)


IN_MODE = {
    "bf16": {"bf16": True},
    "adafactor": {"optim": "adafactor"},
    "stream": {"train_dataset": Stream()},
    "plateau": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "threshold": 10.0},
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "loss",
        "eval_dataset": Images(16),
    },
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", IN_MODE)
def test_resuming_in_mode(tmp_path, name):
    whole = train(tmp_path / "a", growth(), **IN_MODE[name], **SAVING)
    assert_same_run(train(tmp_path / "b", growth(), checkpoint(whole, 4), **IN_MODE[name]), whole)


def test_resuming_with_another_config_tells_what_differs(full, tmp_path, caplog):
    """The events that happened count; the new config decides about those to come."""
    with caplog.at_level(logging.WARNING, "hf_saddle.training"):
        resumed = train(tmp_path, growth(at=[4, 7]), checkpoint(full, 4))
    (message,) = [record.getMessage() for record in caplog.records if "another GrowthConfig" in record.getMessage()]
    assert "at [3, 6, 9] → [4, 7]." in message
    assert [event["step"] for event in events(resumed)] == [3, 7]
    assert events(resumed)[0] == events(full)[0]


def test_callbacks_that_are_restored_from_the_checkpoint(full, tmp_path):
    resumed = train(
        tmp_path,
        growth(),
        checkpoint(full, 4),
        restore_callback_states_from_checkpoint=True,
    )
    assert_same_run(resumed, full)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("restore", [False, True])
def test_a_probe_dataset_has_to_be_given_again(tmp_path, restore):
    def callbacks(**given):
        return [GrowthCallback(growth(), **given)]

    fields = {"restore_callback_states_from_checkpoint": restore}
    whole = train(tmp_path / "a", callbacks=callbacks(probe_dataset=Images(32)), **SAVING)
    again = train(tmp_path / "b", None, checkpoint(whole, 4), callbacks=callbacks(probe_dataset=Images(32)), **fields)
    assert_same_run(again, whole)
    with pytest.raises(ValueError, match="Give it again"):
        train(tmp_path / "c", None, checkpoint(whole, 4), callbacks=callbacks(), **fields)


def test_a_checkpoint_of_a_run_without_growth(tmp_path):
    plain = train(tmp_path / "a", trainer_class=Trainer, **SAVING)
    trainer = train(tmp_path / "b", growth(), checkpoint(plain, 7))
    # The events at steps 3 and 6 are past.
    assert [event["step"] for event in events(trainer)] == [9]
    assert losses(trainer)[:9] == losses(plain)[:9]


def test_the_best_model_may_be_a_smaller_one(tmp_path):
    # The largest loss is the best here, which is an early one.
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    saving = {"eval_strategy": "steps", "eval_steps": 1, **SAVING}
    trainer = train(tmp_path, growth(), eval_dataset=Images(16), save_total_limit=2, **best, **saving)
    step = trainer.state.best_global_step
    reloaded = AutoModelForImageClassification.from_pretrained(checkpoint(trainer, step))
    assert step < 12
    assert_same_weights(trainer.model, reloaded)
    assert trainer.model.growth_history == reloaded.growth_history
    assert trainer.model.shapes() == reloaded.shapes()
    trainer.train()  # the optimizer was made for the larger model
    GrowthHistory.from_model(trainer.model).check(trainer.model)


# --------------------------------------------------------------------------------------------------- whole checkpoints
@pytest.fixture
def saved(full, tmp_path) -> Path:
    """A copy of a folder with the checkpoints 3 and 4."""
    for step in (3, 4):
        shutil.copytree(checkpoint(full, step), tmp_path / f"checkpoint-{step}")
    return tmp_path


FILES = ("config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.mark.parametrize("with_manifest", [True, False], ids=["manifest", "plain"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_not_taken_for_whole(saved, name, damage, with_manifest):
    newest = saved / "checkpoint-4"
    assert last_whole_checkpoint(saved) == str(newest)
    if not with_manifest:
        (newest / MANIFEST_NAME).unlink()
        assert last_whole_checkpoint(saved) == str(newest)
    path = newest / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    assert missing_parts(newest) == [name]
    assert last_whole_checkpoint(saved) == str(saved / "checkpoint-3")


def test_resuming_takes_the_last_whole_checkpoint(full, saved):
    (saved / "checkpoint-4" / "optimizer.pt").unlink()
    resumed = train(saved, growth(), True)
    assert_same_run(resumed, full)


def test_resuming_from_a_damaged_checkpoint_is_refused(saved):
    (saved / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="optimizer.pt missing or truncated. The last whole one"):
        train(saved, growth(), str(saved / "checkpoint-4"))
    with pytest.raises(ValueError, match="no whole checkpoint"):
        train(saved / "empty", growth(), True)


def test_weights_alone_are_a_whole_checkpoint_of_a_plain_trainer(tmp_path):
    train(tmp_path, trainer_class=Trainer, save_only_model=True, **SAVING | {"save_steps": 6})
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    assert train(tmp_path, growth(), str(tmp_path / "checkpoint-6")).state.global_step == 12


def test_a_checkpoint_has_the_arguments_of_its_training(tmp_path):
    train(tmp_path, save_total_limit=2, **SAVING)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-11", "checkpoint-12"]
    args = torch.load(tmp_path / "checkpoint-12" / "training_args.bin", weights_only=False)
    assert args.save_total_limit == 2


def test_a_checkpoint_of_another_model_is_refused(saved, full):
    other = tiny("deit")
    with pytest.raises(ValueError, match="[Cc]heckpoint"):
        train(saved / "new", growth(), str(saved / "checkpoint-4"), model=other)


def test_the_manifest_lists_all_files(saved):
    folder = saved / "checkpoint-4"
    files = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    assert {*FILES, "growth_history.json"} <= set(files)
    (folder / "more.txt").write_text("x")
    write_manifest(folder)
    (folder / "more.txt").unlink()
    assert missing_parts(folder) == ["more.txt"]


def test_discarding(saved):
    discard(saved / "checkpoint-4")
    discard(saved / "checkpoint-9")
    assert last_whole_checkpoint(saved) == str(saved / "checkpoint-3")
    assert last_whole_checkpoint(saved / "nowhere") is None


def test_saving_over_a_later_checkpoint_of_an_earlier_run(full, saved):
    """Files of the old checkpoint do not survive in the new one."""
    stale = saved / "checkpoint-4" / "stale.bin"
    stale.write_text("x")
    resumed = train(saved, growth(), str(saved / "checkpoint-3"), **SAVING)
    assert_same_run(resumed, full)
    assert not stale.exists() and missing_parts(saved / "checkpoint-4") == []
    ours = torch.load(saved / "checkpoint-4" / "optimizer.pt", weights_only=True)
    theirs = torch.load(f"{checkpoint(full, 4)}/optimizer.pt", weights_only=True)
    assert ours["param_groups"] == theirs["param_groups"]
