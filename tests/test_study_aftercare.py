"""What the study does after an event: rates of new parameters and of all, and plans that are tried by training."""

import copy
import sys
from pathlib import Path

import pytest
import torch


sys.path.append(str(Path(__file__).parents[1]))
from benchmarks.study import aftercare, baselines, experiments, probe, task, training  # noqa: E402
from benchmarks.study.task import make_model  # noqa: E402
from hf_saddle.growth import GrowthConfig, count_parameters  # noqa: E402
from hf_saddle.training import growth_event_  # noqa: E402


CONFIG = GrowthConfig(probe_samples=64, max_growth=1.4, at=[0.2, 0.5], significance=0.0, selection="gain")


@pytest.fixture
def start():
    """A model, its optimizer and the probe batches of two events."""
    model = make_model(0, experiments.shape(4, hidden=16))
    split = task.digits()["train"]
    optimizer = torch.optim.AdamW(training.parameter_groups(model), lr=1e-3)
    return model, optimizer, [probe.probe(split, CONFIG, 0, number) for number in range(2)]


def test_new_parameters_learn_at_their_own_rate_and_keep_all_else(start):
    model, optimizer, batches = start
    old = dict(model.named_parameters())
    decays = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for number in range(2):
        known = dict(model.named_parameters())
        growth_event_(model, optimizer, batches[number], CONFIG, event=number)
        aftercare.own_rate_(model, optimizer, known, 3.0)
        training.train_step_(model, optimizer, batches[0][0], 0.01)
        rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        names = {name: rates[parameter] for name, parameter in model.named_parameters()}
        assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
        assert {name for name, rate in names.items() if rate == pytest.approx(0.01)} == set(old)
        faster = [rate for name, rate in names.items() if name not in old]
        assert faster == pytest.approx([0.03] * (len(names) - len(old)))
    kept = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"] if p in decays}
    assert kept and all(decays[parameter] == value for parameter, value in kept.items())


@pytest.mark.parametrize(("place", "grows"), [(0, False), (1, True), (2, True)])
def test_the_plan_that_trains_best_grows_without_that_training(start, monkeypatch, place, grows):
    model, optimizer, batches = start
    seen = []

    def train_(twin, own):
        held = {parameter for group in own.param_groups for parameter in group["params"]}
        assert held == set(twin.parameters()) and not held & set(model.parameters())
        torch.nn.init.zeros_(twin.classifier.weight)
        seen.append(twin)

    losses = iter([3.0 - (index == place) for index in range(3)] + [0.0, 0.0])
    for module in (aftercare, baselines):
        monkeypatch.setattr(module, "probe_loss", lambda *arguments: next(losses))
    before = copy.deepcopy(model.state_dict())
    candidates = ({}, {"criterion": "width"} | training.FILLED)
    tried = {"event": 0, "step": 1, "candidates": candidates, "train_": train_, "judges": batches[1]}
    done = aftercare.tried_event_(model, optimizer, batches[0], CONFIG, **tried)
    sizes = [count_parameters(twin) for twin in seen]
    assert sizes[0] == done.parameters_before < min(sizes[1:])
    assert count_parameters(model) == sizes[place] == done.parameters_after
    assert torch.equal(model.classifier.weight, before["classifier.weight"])
    assert all(layer["operator"] == "split" for layer in done.layers) == (place != 1)
    assert bool(done.layers) == grows


def test_the_rate_rises_again_after_an_event_and_stays_until_it_decays(monkeypatch):
    splits, rates = task.digits(), []
    monkeypatch.setitem(task.TASKS, "fashion-mnist", lambda: splits)
    monkeypatch.setattr(training, "train_step_", lambda model, optimizer, batch, rate: rates.append(rate))
    growth = {"probe_samples": 64, "max_growth": 1.2}
    plan = {"learning_rate": 1.0, "events": (0.5,), "growth": growth, "decay": "constant", "rewarm": 0.1}
    arm = training.Arm("tiny", experiments.shape(4, hidden=16), 100, "steps", **plan)
    training.run(arm, 0)
    assert rates[10:50] == [1.0] * 40
    assert rates[50:61] == pytest.approx([index / 10 for index in range(11)])
    assert rates[61:71] == [1.0] * 10 and rates[85] == pytest.approx(0.5) and rates[99] == pytest.approx(1 / 30)


def test_the_doubled_block_makes_the_best_uniform_model():
    best, (doubled,) = (
        experiments.best_uniform(),
        [a for a in experiments.in_seconds() if a.name == experiments.DOUBLED],
    )
    whole, half = (count_parameters(make_model(0, arm.shape)) for arm in (best, doubled))
    assert doubled.shape == best.shape | {"num_hidden_layers": 1} and doubled.way == "even"
    assert whole <= doubled.growth["max_parameters"] < whole + (whole - half)
