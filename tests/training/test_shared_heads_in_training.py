"""Heads of models whose attention modules share relative positions (T5), chosen by measurement in a training."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from test_ddp import found_by_ranks
from test_resume import SAVING, assert_same_run, checkpoint
from torch.utils.data import Dataset
from training_cases import across, events, train

from hf_saddle.growth import GrowthConfig, GrowthHistory, halves, probe_loss
from hf_saddle.models.heads import heads_of
from hf_saddle.training import growth_event_, probe_batches
from hf_saddle.training.checks.model_checks import growing_kinds
from hf_saddle.training.events.random_growth import random_event_


sys.path.append(str(Path(__file__).parents[1] / "growth"))
from family_cases import family_model  # noqa: E402


HEADS = ["new_head", "split_head"]


class Sequences(Dataset):
    """Random tokens, to be told backwards."""

    def __init__(self, size: int = 64):
        self.tokens = torch.randint(3, 97, (size, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index].flip(0)}


def t5():
    return family_model("T5ForConditionalGeneration", dropout_rate=0.1)


def run(folder, operator, resume=None, **fields):
    return train(folder, across(operator=operator), resume, model=t5(), train_dataset=Sequences(), **fields)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return run(tmp_path_factory.mktemp("full"), HEADS, **SAVING)


# 2: before all growth; 4: after the first event; 10: after all.
@pytest.mark.parametrize("step", [2, 4, 10])
def test_a_resumed_run_is_the_straight_one(full, tmp_path, step):
    done = [event for event in events(full) if event["operators"]]
    assert done and all(set(event["operators"]) <= {*HEADS} for event in done)
    assert_same_run(run(tmp_path, HEADS, checkpoint(full, step)), full)


@pytest.fixture(scope="module", params=["any", "split_head"])
def grown(request):
    """A model before and after an event, with the probe."""
    config = across(operator=request.param, probe_samples=256, event_budget=40_000, max_growth=None)
    model, batches = t5().double(), probe_batches(Sequences(256), across(probe_samples=256))
    before = copy.deepcopy(model)
    return before, model, growth_event_(model, None, batches, config), batches, config


def own_loss(model, batch):
    return model(**batch).loss


def test_an_event_does_to_the_samples_that_judge_what_was_predicted(grown):
    before, model, event, batches, config = grown
    judging = halves(batches)[1]
    measured = probe_loss(before, judging, own_loss) - probe_loss(model, judging, own_loss)
    assert event.forecast == "event" and event.predicted_gain == pytest.approx(measured, rel=1e-4) and measured > 0
    assert {*HEADS} & {*event.candidates} and event.parameters_after - event.parameters_before <= config.event_budget
    GrowthHistory.from_model(model).check(model)


def test_splits_of_all_blocks_of_a_list_come_together(grown):
    _, model, event, _, config = grown
    if config.operator == "split_head":
        assert event.heads and len({layer["predicted_gain"] for layer in event.layers}) < len(event.layers)
    numbers = heads_of(model.base_model)
    assert all(numbers[root] == numbers[root.replace("block.1", "block.0")] for root in numbers)


def test_the_control_grows_as_many_at_random(grown):
    before, _, event, batches, config = grown
    model = copy.deepcopy(before)
    done = random_event_(model, None, batches, config, event, event=0, loss=own_loss)
    assert (done.heads, len(done.blocks)) == (event.heads, len(event.blocks))


def test_heads_and_blocks_do_not_come_in_one_event():
    model = t5()
    config = across(operator=["new_head", "block_copy"], probe_samples=256, event_budget=80_000, max_growth=None)
    event = growth_event_(model, None, probe_batches(Sequences(256), config), config)
    assert bool(event.heads) != bool(event.blocks)
    assert {*event.candidates} == {"new_head", "block_copy"}


def test_heads_of_some_blocks_of_a_list_may_not_grow():
    model = t5()
    with pytest.raises(ValueError, match="of T5 those of all blocks"):
        growing_kinds(model, GrowthConfig(operator="new_head", layers=[1]))
    assert growing_kinds(model, GrowthConfig(operator="new_head", layers=[0, 1])).heads == ("new_head",)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_choose_and_grow_what_one_does(tmp_path):
    for rank in (each["shared_heads"] for each in found_by_ranks(tmp_path, "shared_heads")):
        assert rank["difference"] < 1e-9 and rank["replicas_equal"]
        ours, theirs = rank["heads"]
        assert ours and ours == theirs
        for (operators, *numbers), (expected, *others) in rank["events"]:
            assert operators == expected and set(operators) <= {*HEADS}
            assert numbers == pytest.approx(others, rel=1e-9)
