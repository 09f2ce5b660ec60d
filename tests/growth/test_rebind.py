"""The optimizer holds the parameters that a model has, in the groups and the order of a fresh one."""

import copy

import pytest
import torch
from growth_cases import plan_for, tiny_model, train

from hf_saddle.growth import grow_, rebind_optimizer_


def groups_of(model):
    """Decay and no-decay groups, as a Trainer makes them."""
    groups = [{"params": [], "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        groups["norm" in name or name.endswith("bias")]["params"].append((name, parameter))
    return groups


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
}


def grown(operator="zero_gain", **kwargs):
    model = tiny_model()
    grow_(model, plan_for(model, operator, [1, 4], **kwargs))
    return model


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("operator", ["zero_gain", "residual_pair", "split"])
@pytest.mark.parametrize("way", ["larger", "smaller"])
def test_groups_and_their_order_are_those_of_a_fresh_optimizer(make, operator, way):
    first, second = tiny_model(), grown(operator)
    model, other = (first, second) if way == "larger" else (second, first)
    optimizer = make(groups_of(model))
    train(model, optimizer, 2)
    held = dict(model.named_parameters())
    states = {name: copy.deepcopy(optimizer.state[parameter]) for name, parameter in held.items()}
    model.load_state_dict(other.state_dict())
    rebind_optimizer_(model, optimizer, held)
    fresh = make(groups_of(model))
    for group, expected in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        assert group["param_names"] == expected["param_names"]
        assert all(a is b for a, b in zip(group["params"], expected["params"], strict=True))
    for name, parameter in model.named_parameters():
        same = name in held and held[name].shape == parameter.shape
        assert (parameter in optimizer.state) == same
        for key in states[name] if same else ():
            now, before = (torch.as_tensor(value[key]) for value in (optimizer.state[parameter], states[name]))
            assert torch.equal(now, before)
    train(model, optimizer, 2)


def test_what_is_not_of_the_model_stays():
    model, temperature = tiny_model(), torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.AdamW([*model.parameters(), temperature])
    held = dict(model.named_parameters())
    model.load_state_dict(grown("split").state_dict())
    rebind_optimizer_(model, optimizer, held)
    assert optimizer.param_groups[0]["params"][-1] is temperature
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters())) + 1


def test_a_part_that_no_group_is_for_leaves_the_optimizer_as_it_was():
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1)
    held = dict(model.named_parameters())
    params, states = list(optimizer.param_groups[0]["params"]), dict(optimizer.state)
    model.load_state_dict(grown("split").state_dict())
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"extra.weight is new in the model"):
        rebind_optimizer_(model, optimizer, held)
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], params, strict=True))
    assert set(optimizer.state) == set(states)
