"""Blocks that a callback inserts: resumed runs equal the uninterrupted one, several processes equal one."""

import json
import logging

import pytest
import torch
from test_ddp import found_by_ranks
from test_resume import SAVING, assert_same_run, checkpoint
from training_cases import Images, assert_same_weights, events, growth, tiny, train, trainer_for
from transformers import AutoModelForImageClassification, Trainer

from hf_saddle.growth import GrowthHistory
from hf_saddle.growth.surgery.blocks import inserted_blocks
from hf_saddle.training import GrowthTrainer


def inserting(**fields):
    defaults = {"operator": "block_copy", "max_growth": 4.0, "event_budget": 9000, "layers": None, "at": [3, 6]}
    return growth(**defaults | fields)


@pytest.fixture(scope="module", params=[False, True], ids=["all", "new"])
def full(request, tmp_path_factory):
    """A run of twelve steps in which two events insert blocks, with dropout; all or only new blocks are trained."""
    folder = tmp_path_factory.mktemp("full")
    return inserting(freeze=request.param), train(folder, inserting(freeze=request.param), **SAVING)


def test_events_insert_blocks_within_their_budget(full):
    config, trainer = full
    inserted = [event for event in events(trainer) if event["blocks"]]
    assert len(inserted) == 2
    for event in inserted:
        assert event["operators"] == ["block_copy"]
        assert 0 < event["parameters_after"] - event["parameters_before"] <= 9000
        assert event["loss_after"] == event["loss_before"] and event["predicted_gain"] > 0
    model = trainer.model
    assert model.config.num_hidden_layers == 2 + sum(len(event["blocks"]) for event in inserted)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    new = tuple(f"vit.{path}." for path in inserted_blocks(GrowthHistory.from_model(model)))
    assert trained == {name for name, _ in model.named_parameters() if not config.freeze or name.startswith(new)}


def test_plain_copies_are_a_kind_of_growth(tmp_path):
    trainer = train(tmp_path, inserting(operator="block_stack", at=[3], event_budget=None, max_growth=2.0))
    (event,) = events(trainer)
    assert {block["how"] for block in event["blocks"]} == {"stack"}
    assert trainer.model.config.num_hidden_layers == 2 + len(event["blocks"])
    assert event["loss_after"] != event["loss_before"]


# 2: before all; 3: right after the first event; 4: between; 6: right after the second; 9: after both.
@pytest.mark.thinned(4)
@pytest.mark.parametrize("step", [2, 3, 4, 6, 9])
@pytest.mark.parametrize("trainer_class", [GrowthTrainer, Trainer])
def test_resuming_from_the_small_model(full, tmp_path, step, trainer_class):
    config, whole = full
    assert_same_run(train(tmp_path, config, checkpoint(whole, step), trainer_class=trainer_class), whole)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("step", [2, 4])
def test_resuming_with_the_grown_model(full, tmp_path, step):
    config, whole = full
    model = AutoModelForImageClassification.from_pretrained(checkpoint(whole, 9))
    assert_same_run(train(tmp_path, config, checkpoint(whole, step), model=model), whole)


def test_the_best_model_may_have_fewer_blocks(tmp_path):
    # The largest loss is the best here, which is an early one.
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    options = SAVING | best | {"eval_strategy": "steps", "eval_steps": 1}
    trainer = train(tmp_path, inserting(), eval_dataset=Images(16), **options)
    reloaded = AutoModelForImageClassification.from_pretrained(checkpoint(trainer, trainer.state.best_global_step))
    inserted = [entry["growth_blocks"] for entry in trainer.state.log_history if "growth_blocks" in entry]
    assert trainer.model.config.num_hidden_layers < 2 + sum(inserted)
    assert_same_weights(trainer.model, reloaded)
    GrowthHistory.from_model(trainer.model).check(trainer.model)


def test_what_happens_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(tmp_path, inserting(freeze=True))
    said = "\n".join(caplog.messages)
    assert "+1 block after layers." in said and "all else frozen" in said and "by block_copy" in said


REFUSED = {
    "budget": ({"max_growth": 1.05, "event_budget": None}, "for a block"),
    "event_budget": ({"event_budget": 10}, "for a block"),
    "layers": ({"layers": [7]}, "names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_grow_is_refused_before_the_first_step(tmp_path, case):
    fields, message = REFUSED[case]
    trainer = trainer_for(tmp_path, inserting(**fields))
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_insert_what_one_does(tmp_path):
    for rank in found_by_ranks(tmp_path, "blocks"):
        assert rank["blocks"]["difference"] < 1e-13
        assert rank["blocks"]["same_blocks"] and rank["blocks"]["replicas_equal"]


def test_a_model_with_blocks_is_saved_as_it_is(tmp_path):
    trainer = train(tmp_path, inserting())
    trainer.save_model()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in trainer.model.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] > tiny().config.num_hidden_layers
