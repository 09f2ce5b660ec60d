"""A checkpoint that version 0.1 wrote, after the first of two events, is loaded and resumed."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from training_cases import TINY, assert_same_weights, events, growth, losses, tiny, trainer_for
from transformers import AutoModelForImageClassification

from hf_saddle.growth import GrowthConfig, GrowthHistory
from hf_saddle.training import GrowthCallback


OLD = Path(__file__).parent / "version_0_1"
SMALL = TINY | {"hidden_size": 8, "intermediate_size": 8, "hidden_dropout_prob": 0.0}
CONFIG = growth(at=[3, 6], max_growth=1.3)
# What the run of eight steps logged that wrote it.
LOSSES = [1.38230, 1.37028, 1.48513, 1.39810, 1.35723, 1.41074, 1.44568, 1.33135]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return shutil.copytree(OLD, tmp_path / "checkpoint-4")


def resumed(tmp_path, checkpoint, config=CONFIG, **fields):
    trainer = trainer_for(tmp_path / "new", config, model=tiny(**SMALL), max_steps=8, **fields)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def saved_config(checkpoint: Path) -> dict:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["stateful_callbacks"]["GrowthCallback"]["args"]["config"]


def change(checkpoint: Path, **fields) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["stateful_callbacks"]["GrowthCallback"]["args"]["config"] |= fields
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))


def test_the_model_and_its_history_load():
    model = AutoModelForImageClassification.from_pretrained(OLD)
    history = GrowthHistory.from_model(model)
    history.check(model)
    assert [event.step for event in history.events] == [3] and history.initial.parameters < model.num_parameters()


@pytest.mark.parametrize("restore", [False, True])
def test_a_resumed_run_goes_on_as_the_old_one(tmp_path, checkpoint, caplog, restore):
    assert saved_config(checkpoint)["budget"] == 1.3
    with caplog.at_level(logging.WARNING, "hf_saddle.training"):
        trainer = resumed(tmp_path, checkpoint, restore_callback_states_from_checkpoint=restore)
    assert not [record for record in caplog.records if record.name.startswith("hf_saddle")]
    assert [event["step"] for event in events(trainer)] == [3, 6]
    assert losses(trainer) == pytest.approx(LOSSES, rel=1e-3)
    (callback,) = (each for each in trainer.callback_handler.callbacks if isinstance(each, GrowthCallback))
    assert callback.config == CONFIG


def test_what_differs_is_told_by_present_names(tmp_path, checkpoint, caplog):
    change(checkpoint, stop=7.5, layer_threshold=2)
    with caplog.at_level(logging.WARNING, "hf_saddle.training"):
        resumed(tmp_path, checkpoint, growth(at=[3, 6], max_growth=1.4))
    (message,) = [record.getMessage() for record in caplog.records if "another GrowthConfig" in record.getMessage()]
    assert "max_growth 1.3 → 1.4, layer_threshold 2 → 1, stop 7.5 → left out." in message


def test_a_callback_is_not_restored_with_what_has_no_counterpart(tmp_path, checkpoint):
    change(checkpoint, stop=7.5)
    with pytest.raises(ValueError, match="`stop=7.5`: list the events in `at`"):
        resumed(tmp_path, checkpoint, restore_callback_states_from_checkpoint=True)


def test_what_a_run_saves_has_present_names_only(tmp_path, checkpoint):
    trainer = resumed(tmp_path, checkpoint, save_strategy="steps", save_steps=8)
    saved = saved_config(tmp_path / "new" / "checkpoint-8")
    assert saved == CONFIG.to_dict() and GrowthConfig.from_dict(saved) == CONFIG
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "new" / "checkpoint-8")
    assert_same_weights(model, trainer.model)
