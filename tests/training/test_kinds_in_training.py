"""Kinds that compete in a training: what is predicted is what happens, resumed runs equal the straight one."""

import copy
import logging
import sys
from pathlib import Path

import pytest
from test_ddp import found_by_ranks
from test_resume import SAVING, assert_same_run, checkpoint
from training_cases import Images, across, events, tiny, train, trainer_for
from transformers import Trainer

from hf_saddle.growth import GrowthConfig, GrowthHistory, count_parameters, grow_, halves, probe_loss
from hf_saddle.growth.choice import timing as timing_module
from hf_saddle.hub import render_model_card, render_report
from hf_saddle.hub.states import neuron_counts, states
from hf_saddle.training import GrowthTrainer, growth_event_, probe_batches
from hf_saddle.training.checks.model_checks import growing_kinds
from hf_saddle.training.distributed import Replicas
from hf_saddle.training.events.random_growth import random_event_
from hf_saddle.training.events.timed import time_growth


sys.path.append(str(Path(__file__).parents[1] / "growth"))
from family_cases import family_plan  # noqa: E402
from test_blocks import block_model  # noqa: E402


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run of twelve steps and three events that all kinds compete for, with dropout."""
    return train(tmp_path_factory.mktemp("full"), across(), **SAVING)


def doubles(batches):
    return [batch | {"pixel_values": batch["pixel_values"].double()} for batch in batches]


def own_loss(model, batch):
    return model(**batch).loss


@pytest.fixture(scope="module")
def grown():
    """A model before and after an event of all kinds, with the probe."""
    model, config = tiny().double(), across(probe_samples=256, event_budget=40_000, max_growth=None)
    batches = doubles(probe_batches(Images(256), config))
    before = copy.deepcopy(model)
    return before, model, growth_event_(model, None, batches, config), batches, config


def test_an_event_does_to_the_samples_that_judge_what_was_predicted(grown):
    before, model, event, batches, config = grown
    # Something moves at once, and something rests.
    assert {"split", "zero_gain", "split_head"} & {*event.operators}
    assert {"new_head", "block_copy"} & {*event.operators}
    judging = halves(batches)[1]
    measured = probe_loss(before, judging, own_loss) - probe_loss(model, judging, own_loss)
    # New heads and blocks rest: what is told of them is what the next half natural step would bring.
    assert event.forecast == "event" and event.predicted_gain == pytest.approx(measured, rel=1e-4) and measured > 0
    assert event.loss_after < event.loss_before
    assert event.parameters_after - event.parameters_before == count_parameters(model) - count_parameters(before)
    assert 0 < event.parameters_after - event.parameters_before <= config.event_budget == event.budget
    assert set(event.candidates) == {"split", "zero_gain", "new_head", "split_head", "block_copy"}
    GrowthHistory.from_model(model).check(model)


def test_cards_and_pages_tell_all_kinds(grown):
    model, event = grown[1:3]
    history = GrowthHistory.from_model(model)
    card = str(render_model_card(model, name="demo"))
    page = render_report(history, title="demo", log=[], neurons=neuron_counts(model))
    for text in (card, page):
        assert all(name in text for name in event.operators if name != "block_copy")
        assert ("+1 block after" in text or "+2 blocks after" in text) == bool(event.blocks)
    assert sum(states(history)[-1].heads) == event.heads


def test_events_keep_to_the_budget_and_say_what_grew(full, tmp_path, caplog):
    done = events(full)
    assert len(done) == 3 and sum(bool(event["operators"]) for event in done) >= 2
    first = done[0]["parameters_before"]
    assert done[-1]["parameters_after"] <= 4 * first
    assert len({name for event in done for name in event["operators"]}) >= 2
    logged = [entry for entry in full.state.log_history if "growth_seconds" in entry]
    assert [entry.get("growth_heads", 0) for entry in logged] == [
        sum(layer["chosen"] for layer in event["layers"] if "head" in layer["operator"]) for event in done
    ]
    assert [entry.get("growth_blocks", 0) for entry in logged] == [len(event["blocks"]) for event in done]


# 2: before all growth; 4: after the first event; 6: right after the second; 10: after all.
@pytest.mark.thinned(3)
@pytest.mark.parametrize("step", [2, 4, 6, 10])
def test_a_resumed_run_is_the_straight_one(full, tmp_path, step):
    trainer_class = Trainer if step == 4 else GrowthTrainer
    assert_same_run(train(tmp_path, across(), checkpoint(full, step), trainer_class=trainer_class), full)


def test_seconds_limit_the_size_and_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(timing_module, "_ENOUGH", 0.1)  # how well it is timed does not matter here
    config = across(budget_unit="seconds", max_growth=2.0, event_budget=None)
    whole = train(tmp_path / "whole", config, **SAVING)
    timed = [event["timing"] for event in events(whole)]
    assert timed[0]["step"] == timed[-1]["step"] > 0
    added = [each["added"] for each in timed]
    assert added == sorted(added) and added[-1] <= timed[0]["step"]
    assert all(timed[0]["rates"].items() <= each["rates"].items() for each in timed)
    spent = [0.0, *added]
    for event, before, after in zip(events(whole), spent, spent[1:], strict=False):
        assert bool(event["operators"]) == (after > before)
    # Its rates are those of the run, whatever the machine does by then, before the first event as well.
    monkeypatch.setattr(timing_module, "_seconds", lambda *args: pytest.fail("measured again"))
    for step in (2, 3):
        resumed = train(tmp_path / f"resumed from {step}", config, checkpoint(whole, step))
        assert_same_run(resumed, whole)
    history = GrowthHistory.from_dict(GrowthHistory.from_model(resumed.model).to_dict())
    assert history.timing is not None and history.timing.to_dict() == timed[-1]


def test_a_kind_that_takes_longer_is_not_chosen(monkeypatch):
    """A machine on which heads take a second each, and all else a microsecond."""

    def slow_heads(model, batch, loss):
        heads = sum(model.config.heads.values()) if model.config.heads else 0
        return 1.0 + heads + 1e-9 * count_parameters(model)

    monkeypatch.setattr(timing_module, "_seconds", slow_heads)
    config = across(at=[3], budget_unit="seconds", max_growth=1.5, probe_samples=256)
    model = tiny()
    event = growth_event_(model, None, probe_batches(Images(256), config), config)
    assert event.heads == 0 and event.operators and event.candidates["new_head"] == 4
    assert {"zero_gain", "split", "new_head", "split_head", "block_copy"} == {*event.timing.rates}
    assert event.timing.step < 1.1 and 0 < event.timing.added <= 0.5 * event.timing.step


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("name", "grown", "operator", "kinds"),
    [
        ("LlamaForCausalLM", False, "any", {"split", "zero_gain", "new_head", "split_head", "block_copy"}),
        (
            "T5ForConditionalGeneration",
            False,
            "any",
            {"split", "zero_gain", "new_head", "split_head", "block_copy"},
        ),
        ("ResNetForImageClassification", False, ["zero_gain", "block_copy"], {"zero_gain", "block_copy"}),
        ("LlamaForCausalLM", True, "split", {"split", "zero_gain"}),  # copies of units take the time of new ones
    ],
)
def test_each_kind_that_may_grow_is_timed(name, grown, operator, kinds, monkeypatch):
    monkeypatch.setattr(timing_module, "_seconds", lambda *args: 1.0)
    model = block_model(name)
    if grown:
        grow_(model, family_plan(model, "zero_gain", [1, 0]))
    config = GrowthConfig(operator=operator, budget_unit="seconds")
    timing = time_growth(model, None, config, own_loss, Replicas())
    assert {*timing.rates} == kinds and {*timing.calls} <= {"zero_gain"} and bool(timing.calls) == (not grown)


POSSIBLE = {
    "BertForMaskedLM": (True, False),
    "ResNetForImageClassification": (False, True),
    "T5ForConditionalGeneration": (True, True),
    "LlamaForCausalLM": (True, True),
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_any_is_what_the_model_can_and_what_is_named_must_be_possible(name):
    model, (heads, blocks) = block_model(name), POSSIBLE[name]
    kinds = growing_kinds(model, GrowthConfig(operator="any"))
    assert (bool(kinds.heads), kinds.blocks is not None) == (heads, blocks)
    for operator, possible in (("new_head", heads), ("block_copy", blocks)):
        config = GrowthConfig(operator=["auto", operator])
        if possible:
            assert growing_kinds(model, config) == config.kinds
        else:
            with pytest.raises(ValueError, match="cannot|no attention heads"):
                growing_kinds(model, config)


def test_heads_that_are_frozen_or_in_other_layers_do_not_grow():
    model = tiny()
    model.get_submodule("vit.layers.1.attention.q_proj").requires_grad_(False)
    with pytest.raises(ValueError, match="No attention heads may grow"):
        growing_kinds(model, GrowthConfig(operator="new_head", layers=[1]))
    assert growing_kinds(model, GrowthConfig(operator="new_head")).heads == ("new_head",)


def test_what_would_not_fit_is_refused_before_the_first_step(tmp_path):
    trainer = trainer_for(tmp_path, across(operator=["new_head", "split_head"], max_growth=None, event_budget=10))
    with pytest.raises(ValueError, match="needs for a head"):
        trainer.train()


def test_what_happens_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(tmp_path, across(operator=["new_head", "block_copy"]))
    said = "\n".join(caplog.messages)
    assert "attention heads" in said or "block" in said
    assert "0 neurons" not in said


def test_the_control_grows_as_much_of_each_kind_at_random(grown):
    before, _, event, batches, config = grown
    model = copy.deepcopy(before)
    done = random_event_(model, None, batches, config, event, event=0, loss=own_loss)
    assert (done.heads, len(done.blocks)) == (event.heads, len(event.blocks))
    GrowthHistory.from_model(model).check(model)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_choose_what_one_does(tmp_path):
    for rank in found_by_ranks(tmp_path, "kinds"):
        found = rank["kinds"]
        assert found["same"] and found["replicas_equal"] and found["difference"] < 1e-13
        assert len(found["operators"]) > 1 and found["gains"][0] == pytest.approx(found["gains"][1])
