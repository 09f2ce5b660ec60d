"""States are carried by what they mean: those of a model split after its steps equal those of one split before."""

import copy

import pytest
import torch
from accelerate import Accelerator
from growth_cases import LINEAR_NAMES, batch, path_of, plan_for, tiny_model, train
from optimizer_cases import MuonAndAdam, Unknown, muon_groups, names_of
from torch import nn
from transformers.optimization import Adafactor as HfAdafactor

from hf_saddle.growth import grow_, merge_pairs_
from hf_saddle.growth.optimizer_rules import OPTIMIZERS, Rules, State, inner_optimizer


# So small that all models stay where they are: twins then see the same batches at the same weights.
AT_REST = {"lr": 1e-12}


def package(name, kind, **options):
    """An optimizer of another package, where that is installed."""
    return lambda p: getattr(pytest.importorskip(name), kind)(p, **AT_REST | options)


def bitsandbytes(kind, **options):
    return lambda p: getattr(pytest.importorskip("bitsandbytes").optim, kind)(p, **AT_REST | options)


EXACT = {
    "adam": lambda p: torch.optim.Adam(p, **AT_REST),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True, **AT_REST),
    "nadam": lambda p: torch.optim.NAdam(p, **AT_REST),
    "radam": lambda p: torch.optim.RAdam(p, **AT_REST),
    "adamax": lambda p: torch.optim.Adamax(p, eps=1e-30, **AT_REST),
    "sgd": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, **AT_REST),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True, eps=1e-30, **AT_REST),
    "lion": package("lion_pytorch", "Lion"),
    "schedule-free-adamw": package("schedulefree", "AdamWScheduleFree"),
    "schedule-free-radam": package("schedulefree", "RAdamScheduleFree"),
    "schedule-free-sgd": package("schedulefree", "SGDScheduleFree"),
}
FACTORED = {
    "torch": lambda p: torch.optim.Adafactor(p, **AT_REST),
    "transformers": lambda p: HfAdafactor(p, relative_step=False, scale_parameter=False, beta1=0.9, **AT_REST),
}
BITSANDBYTES = {
    "adamw": bitsandbytes("AdamW"),
    "adam": bitsandbytes("Adam"),
    "lamb": bitsandbytes("LAMB"),
    "lion": bitsandbytes("Lion"),
    "sgd": bitsandbytes("SGD", momentum=0.9),
    "rmsprop": bitsandbytes("RMSprop"),
}


def in_training(optimizer):
    """Schedule-free optimizers have modes, as modules have."""
    if type(optimizer).__name__.endswith("ScheduleFree"):
        optimizer.train()
    return optimizer


def grown_twins(make, neurons, depth, dtype=torch.float64, steps=3):
    """A model that is split after some steps, and one that is split before them; the optimizer of each."""
    first = tiny_model().to(dtype)
    grow_(first, plan_for(first, "zero_gain", [0, 1, 2], gains=0.5))
    second = copy.deepcopy(first)
    plan = plan_for(first, "split", neurons, depth=depth, steps=0.0)
    optimizers = []
    for model, before in ((first, steps), (second, 0)):
        optimizer = in_training(make(model.parameters()))
        run(model, optimizer, range(before))
        grow_(model, plan, optimizer)
        run(model, optimizer, range(before, steps))
        optimizers.append(optimizer)
    return (first, optimizers[0]), (second, optimizers[1])


def run(model, optimizer, seeds):
    for seed in seeds:
        model(**batch(seed=seed, dtype=model.dtype)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same_states(ours, theirs, tolerance):
    """The states of the layer's MLP; gradients of key biases are noise around zero."""
    (first, ours), (second, theirs) = ours, theirs
    base, twin, compared = path_of(first, "mlp"), dict(second.named_parameters()), set()
    for name, parameter in first.named_parameters():
        if not name.startswith(base):
            continue
        state, expected = ours.state[parameter], theirs.state[twin[name]]
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            value, found = torch.as_tensor(value).double(), torch.as_tensor(state[key]).double()
            assert found.shape == value.shape, (name, key)
            assert (found - value).abs().max() <= tolerance * value.abs().max(), (name, key)
            compared.add(key)
    return compared


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("neurons", "depth"), [([5, 9], 0), ([1], 1)], ids=["neurons", "unit"])
@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
def test_states_equal_those_of_a_twin_that_was_split_before(make, neurons, depth):
    ours, theirs = grown_twins(make, neurons, depth)
    compared = assert_same_states(ours, theirs, 1e-9)
    assert compared <= set().union(*(rules.states for rules in OPTIMIZERS.values()))
    for model, optimizer in (ours, theirs):
        run(model, optimizer, range(3, 6))
    assert_same_states(ours, theirs, 1e-9)


@pytest.mark.parametrize("make", FACTORED.values(), ids=FACTORED)
def test_factored_states_equal_those_of_a_twin_where_every_neuron_is_split(make):
    """Rows that change among others that do not leave means that factors cannot tell; all rows alike are exact."""
    ours, theirs = grown_twins(make, list(range(24)), 0)
    for model, optimizer in (ours, theirs):  # a step, in which Adafactor notes the size of the weights
        run(model, optimizer, [3])
    assert_same_states(ours, theirs, 1e-6)


@pytest.mark.parametrize("make", BITSANDBYTES.values(), ids=BITSANDBYTES)
def test_states_of_bitsandbytes_equal_those_of_a_twin(make):
    ours, theirs = grown_twins(make, [5, 9], 0, dtype=torch.float32)
    for model, optimizer in (ours, theirs):  # a step, in which LAMB notes the size of the update
        run(model, optimizer, [3])
    assert_same_states(ours, theirs, 1e-5)


def test_states_of_muon_equal_those_of_a_twin():
    first = tiny_model().double()
    second = copy.deepcopy(first)
    results = []
    for model, before in ((first, 3), (second, 0)):
        optimizer = MuonAndAdam(muon_groups(model, **AT_REST))
        run(model, optimizer, range(before))
        grow_(model, plan_for(model, "split", [5, 9], steps=0.0), optimizer)
        run(model, optimizer, range(before, 3))
        results.append((model, optimizer))
    assert assert_same_states(*results, 1e-9) == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}


# ------------------------------------------------------------------------------------------------- copies of weights
SCHEDULE_FREE = {"AdamWScheduleFree": 1e-2, "RAdamScheduleFree": 1e-2, "SGDScheduleFree": 0.3}


@pytest.mark.parametrize("operator", ["split", "zero_gain", "opposed_pair"])
@pytest.mark.parametrize("kind", SCHEDULE_FREE)
def test_the_averaged_model_grows_as_the_trained_one_does(kind, operator):
    """What is evaluated is an average of past weights: it equals a copy of it that grew by itself."""
    model = tiny_model().double()
    optimizer = getattr(pytest.importorskip("schedulefree"), kind)(model.parameters(), lr=SCHEDULE_FREE[kind])
    optimizer.train()
    grow_(model, plan_for(model, "zero_gain", [0, 1], gains=0.5), optimizer)
    run(model, optimizer, range(20))
    optimizer.eval()
    average = copy.deepcopy(model)
    optimizer.train()
    options = {"gains": 0.25} if operator == "zero_gain" else {}
    plan = plan_for(model, operator, [3, 7], steps=1e-6 if operator == "split" else 0.1, **options)
    distance = max((a - b).abs().max().item() for a, b in zip(model.parameters(), average.parameters(), strict=True))
    assert distance > 1e-6  # the average is elsewhere
    grow_(model, plan, optimizer)
    grow_(average, plan)
    optimizer.eval()
    for (name, ours), theirs in zip(model.named_parameters(), average.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12), name
    optimizer.train()
    run(model, optimizer, range(20, 22))


def test_merged_pairs_keep_the_averaged_model():
    model = tiny_model(hidden_act="gelu").double()
    optimizer = pytest.importorskip("schedulefree").SGDScheduleFree(model.parameters(), lr=0.3)
    optimizer.train()
    grow_(model, plan_for(model, "residual_pair", [0, 2], LINEAR_NAMES), optimizer)
    run(model, optimizer, range(5))
    optimizer.eval()
    average = copy.deepcopy(model)
    optimizer.train()
    merge_pairs_(model, optimizer)
    merge_pairs_(average)
    optimizer.eval()
    for (name, ours), theirs in zip(model.named_parameters(), average.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12), name


def test_first_updates_of_new_units_are_not_oversized_where_groups_count_the_steps():
    """Schedule-free has one step count for all: moments that start from 0 late would make steps 30 times the rate."""
    model = tiny_model()
    optimizer = pytest.importorskip("schedulefree").AdamWScheduleFree(model.parameters(), lr=1e-3)
    optimizer.train()
    run(model, optimizer, range(60))
    grow_(model, plan_for(model, "zero_gain", list(range(12))), optimizer)
    gain = model.get_submodule(path_of(model, "mlp.fc1")).skip.gain
    moved = []
    for seed in range(60, 66):
        before = optimizer.state[gain]["z"].clone()
        run(model, optimizer, [seed])
        moved.append((optimizer.state[gain]["z"] - before).abs().max().item() / 1e-3)
    assert 0 < max(moved) < 10, moved


# -------------------------------------------------------------------------------------------------------- new vectors
def test_new_vectors_join_a_group_that_may_hold_them():
    model = tiny_model()
    optimizer = MuonAndAdam(muon_groups(model, lr=1e-3))
    train(model, optimizer, 2)
    for depth in (0, 1):
        grow_(model, plan_for(model, "zero_gain", [0, 1], LINEAR_NAMES, depth=depth), optimizer)
        train(model, optimizer, 2)
    matrices, heads, rest = names_of(model, optimizer)
    assert any("skip.linear.weight" in name for name in matrices) and not any("skip" in name for name in heads)
    assert {name for name in rest if "skip" in name} == {
        name for name, parameter in model.named_parameters() if "skip" in name and parameter.dim() == 1
    }


def test_an_optimizer_for_matrices_only_is_refused():
    model = tiny_model()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    with pytest.raises(ValueError, match="Muon has no group for gains and biases"):
        inner_optimizer(torch.optim.Muon(matrices))


# ----------------------------------------------------------------------------------------------------------- refusals
class Renamed(torch.optim.AdamW):
    """Another name for the same."""


class Overridden(torch.optim.AdamW):
    """Steps that nobody knows."""

    def step(self, closure=None):
        return super().step(closure)


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer


UNKNOWN = {
    "another class": lambda p: Unknown(p, lr=0.1),
    "a known class with other steps": lambda p: Overridden(p),
    "a wrapper": lambda p: Wrapper(torch.optim.AdamW(p)),
    "accelerated": lambda p: Accelerator(cpu=True).prepare(Unknown(p, lr=0.1)),
    "eight bits": lambda p: pytest.importorskip("bitsandbytes").optim.AdamW(p, optim_bits=8),
    "eight bits by class": lambda p: pytest.importorskip("bitsandbytes").optim.AdamW8bit(p),
    "paged": lambda p: pytest.importorskip("bitsandbytes").optim.AdamW(p, is_paged=True),
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_optimizers_are_refused_before_they_have_a_state(make):
    with pytest.raises(ValueError, match="cannot be carried through a growth.*AdamW.*OPTIMIZERS"):
        inner_optimizer(make([nn.Parameter(torch.zeros(2, 2))]))


def test_a_subclass_with_the_same_steps_is_known():
    model = tiny_model()
    optimizer = Accelerator(cpu=True).prepare(Renamed(model.parameters()))
    train(model, optimizer, 1)
    grow_(model, plan_for(model, "split", [1]), optimizer)
    train(model, optimizer, 1)


def test_a_state_beyond_the_rules_is_refused():
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1)
    weight = model.get_submodule(path_of(model, "mlp.fc1")).weight
    optimizer.state[weight]["slow"] = weight.detach().clone()
    with pytest.raises(ValueError, match="'slow' of vit.layers.0.mlp.fc1.weight"):
        grow_(model, plan_for(model, "split", [1]), optimizer)


def test_own_optimizers_tell_their_rules(monkeypatch):
    model = tiny_model()
    optimizer = Unknown(model.parameters(), lr=0.1)
    monkeypatch.setitem(OPTIMIZERS, f"{Unknown.__module__}.Unknown", Rules({"average": State.GRADIENTS}))
    train(model, optimizer, 1)
    weight = model.get_submodule(path_of(model, "mlp.fc1")).weight
    before = optimizer.state[weight]["average"].clone()
    event = grow_(model, plan_for(model, "split", [1]), optimizer)
    now = optimizer.state[event.replaced[weight]]["average"]
    assert torch.equal(now[[1, 24]], before[[1, 1]] / 2)


def test_a_new_parameter_whose_sibling_is_not_trained_is_refused():
    """It would require a gradient and never move."""
    model = tiny_model()
    trained = [parameter for name, parameter in model.named_parameters() if "layers.0.mlp.fc1" not in name]
    with pytest.raises(ValueError, match="does not hold vit.layers.0.mlp.fc1"):
        grow_(model, plan_for(model, "zero_gain", [1]), torch.optim.AdamW(trained))
    assert model.growth_history is None
