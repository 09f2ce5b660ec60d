"""Every operator by one line of a table: it keeps the function, costs what the books say, and can be replayed."""

import copy
from dataclasses import dataclass

import pytest
import torch
from growth_cases import LINEAR_NAMES, logits, path_of, plan_for, tiny_model, wake_

from hf_saddle.growth import GrowthHistory, GrowthPlan, count_macs, count_parameters, grow_, head_growth
from hf_saddle.growth.costs import plan_cost
from hf_saddle.growth.operators import HEAD_OPERATORS, NEURON_OPERATORS, OPERATORS
from hf_saddle.growth.surgery.grow import added_by


@dataclass
class Case:
    """Where an operator grows neurons, and how far outputs of float64 may move in its first step."""

    linears: tuple[str, ...] = ("mlp.fc1",)
    nested: bool = False  # also the units of branches
    steps: float | None = 0.0  # at which the function is kept
    change: float = 1e-13


CASES = {
    "zero_gain": Case(LINEAR_NAMES, nested=True, steps=None, change=0.0),
    "residual_pair": Case(LINEAR_NAMES, nested=True, steps=None, change=0.0),
    "opposed_pair": Case(LINEAR_NAMES, nested=True, steps=None, change=0.0),
    "split": Case(nested=True),
    "net2net": Case(nested=True),
    "gradmax": Case(steps=None, change=0.0),
}
# Of heads, how far outputs of float64, which longer products round in another order, may move in the first step.
HEAD_CASES = {"new_head": 1e-13, "split_head": 1e-13}


def test_every_operator_is_in_the_table():
    assert [*CASES, *HEAD_CASES] == [*NEURON_OPERATORS, *HEAD_OPERATORS] == [*OPERATORS]
    assert all(name == operator.name for name, operator in OPERATORS.items())


@pytest.mark.parametrize("name", CASES)
def test_an_operator_keeps_the_function_costs_what_is_booked_and_can_be_replayed(name):
    case = CASES[name]
    first = "residual_pair" if name == "residual_pair" else "zero_gain"
    for depth in range(2 if case.nested else 1):
        model = tiny_model().double()
        grow_(model, plan_for(model, first, [0, 3], LINEAR_NAMES))
        # Before there are units that answer sums are exact, with them they are rounded in another order.
        wake_(model) if case.change else None
        start, twin = copy.deepcopy(model.config), copy.deepcopy(model)
        twin.growth_history = model.growth_history = None
        before, parameters, macs = logits(model), count_parameters(model), count_macs(model)
        linears = LINEAR_NAMES if depth else case.linears
        plan = plan_for(model, name, [1, 0], linears, depth=depth, steps=case.steps)
        cost = plan_cost(model, plan.growths)
        event = grow_(model, plan)
        assert (logits(model) - before).abs().max() <= case.change
        assert count_parameters(model) - parameters == cost.parameters == event.parameters_after - parameters > 0
        assert count_macs(model) - macs == cost.macs == event.macs_after - macs > 0
        grow_(twin, GrowthPlan.from_json(plan.to_json()))
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in twin.state_dict().items())
        history = GrowthHistory.from_dict(model.growth_history)
        replayed = type(model)(history.apply(start))
        assert [p.shape for p in replayed.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("name", HEAD_CASES)
def test_an_operator_of_heads_keeps_the_function_costs_what_it_says_and_can_be_replayed(name):
    model = tiny_model().double()
    grow_(model, plan_for(model, "zero_gain", [0, 3], LINEAR_NAMES))
    wake_(model)
    twin, before, size = copy.deepcopy(model), logits(model), (count_parameters(model), count_macs(model))
    how = name.removesuffix("_head")
    plan = GrowthPlan((head_growth(model, path_of(model, "attention"), 1, how, step_size=0.0),))
    cost = added_by(model, plan)
    event = grow_(model, plan)
    assert (logits(model) - before).abs().max() <= HEAD_CASES[name]
    assert (count_parameters(model), count_macs(model)) == (size[0] + cost.parameters, size[1] + cost.macs)
    assert (event.heads, event.neurons, event.operators) == (1, 0, [name]) and cost.parameters > 0
    grow_(twin, GrowthPlan.from_json(plan.to_json()))
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    GrowthHistory.from_model(model).check(model)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_grows_only_where_its_line_says(name):
    case = CASES[name]
    for linear in set(LINEAR_NAMES) - set(case.linears):
        model = tiny_model()
        with pytest.raises(ValueError, match="Give this linear an operator of depth"):
            grow_(model, plan_for(model, name, [1], [linear]))
    if not case.nested:
        model = tiny_model()
        grow_(model, plan_for(model, "zero_gain", [0, 3]))
        path = path_of(model, "mlp.fc1", depth=1)
        with pytest.raises(ValueError, match=f"not {path}"):
            grow_(model, plan_for(model, name, [1], depth=1))
