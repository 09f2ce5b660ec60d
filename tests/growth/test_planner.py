"""Plans: deterministic, by gain per cost, never above the budget."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from growth_cases import entry_for, path_of, plan_for, report_for, tiny_model

from hf_saddle.growth import (
    GrowthConfig,
    GrowthHistory,
    GrowthPlan,
    PaperGrowthConfig,
    count_macs,
    count_parameters,
    event_budget,
    grow_,
    plan_growth,
)
from hf_saddle.growth.paper import QUOTAS


def chosen(plan):
    return {(growth.linear, growth.operator): growth.neurons for growth in plan.growths}


def test_the_best_gain_per_parameter_is_taken_first():
    model = tiny_model()
    gain = torch.zeros(24)
    gain[[3, 7, 11]] = torch.tensor([1.0, 3.0, 2.0])
    fc1 = path_of(model, "mlp.fc1")
    config = GrowthConfig(at=[0.5], event_budget=2 * 18, max_growth=None, criterion="depth")
    plan = plan_growth(report_for(model, entry_for(model, fc1, gain=gain)), model, config)
    assert chosen(plan) == {(fc1, "zero_gain"): (7, 11)} and plan.parameters == 36
    assert plan.growths[0].candidates == 3 and plan.predicted_gain == 5.0 and plan.budget == 36


def test_auto_takes_depth_or_width_per_neuron_by_gain_per_parameter():
    model = tiny_model()
    fc1 = path_of(model, "mlp.fc1")
    width, depth = torch.zeros(24), torch.zeros(24)
    width[[1, 2]] = torch.tensor([4.0, 1.0])  # a split costs 33 parameters, a unit 18
    depth[[1, 2]] = torch.tensor([2.0, 1.0])
    entries = entry_for(model, fc1, "width", gain=width), entry_for(model, fc1, "depth", gain=depth)
    plan = plan_growth(report_for(model, *entries), model, GrowthConfig(at=[0.5]))
    assert chosen(plan) == {(fc1, "split"): (1,), (fc1, "zero_gain"): (2,)}
    assert plan.parameters == 33 + 18


@pytest.mark.parametrize("unit", ["parameters", "macs"])
@pytest.mark.parametrize("operator", ["auto", "split", "residual_pair", "opposed_pair", "net2net", "gradmax"])
def test_a_plan_keeps_the_budget_and_says_what_it_adds(unit, operator):
    model = tiny_model()
    report = report_for(model)
    size = {"parameters": count_parameters, "macs": count_macs}[unit]
    before = {count: count(model) for count in (count_parameters, count_macs)}
    limit = {"max_growth": 1.2} if unit == "parameters" else {"max_macs": 1.2 * count_macs(model)}
    config = GrowthConfig(at=[0.5], **limit, operator=operator)
    plan = plan_growth(report, model, config)
    assert plan
    grow_(model, plan)
    assert count_parameters(model) - before[count_parameters] == plan.parameters
    assert count_macs(model) - before[count_macs] == plan.macs
    assert 1.1 * before[size] < size(model) <= 1.2 * before[size]


def test_the_same_arguments_give_the_same_plan():
    model = tiny_model()
    digests = {plan_growth(report_for(model), tiny_model(), GrowthConfig()).digest() for _ in range(2)}
    assert len(digests) == 1


@pytest.mark.parametrize("criterion", ["width", "depth"])
def test_random_directions_keep_the_neurons(criterion):
    model = tiny_model()
    fc1 = path_of(model, "mlp.fc1")
    random = replace(entry_for(model, fc1, "random", gain=torch.ones(24), seed=1), response=torch.full((24,), 4.0))
    report = report_for(model, entry_for(model, fc1, criterion), random)
    configs = [PaperGrowthConfig(criterion=criterion, directions=kind) for kind in ("eigenvectors", "random")]
    assert configs[1].criteria == (criterion, "random")
    own, drawn = (plan_growth(report, model, config) for config in configs)
    assert chosen(own) == chosen(drawn)
    neurons = list(own.growths[0].neurons)
    assert torch.equal(drawn.growths[0].directions, random.direction[neurons])
    assert not torch.equal(own.growths[0].directions, drawn.growths[0].directions)
    # A split is as long as its twin; the pre-activation of a unit is as large, for which its row has another length.
    longer = {"width": 1.0, "depth": 10.0 / 4.0}[criterion]
    torch.testing.assert_close(drawn.growths[0].steps, longer * own.growths[0].steps)


def test_where_it_may_grow():
    model = tiny_model()
    report = report_for(model)
    plan = plan_growth(report, model, GrowthConfig(linears=["mlp.fc2", "attention.v_proj"], layers=[1]))
    assert {growth.linear for growth in plan.growths} == {
        path_of(model, "attention.v_proj", 1),
        path_of(model, "mlp.fc2", 1),
    }


def test_a_layer_below_the_threshold_does_not_grow():
    model = tiny_model()
    few, many = torch.zeros(16), torch.zeros(16)
    few[:3], many[:4] = 5.0, 1.0
    paths = [path_of(model, name) for name in ("attention.q_proj", "attention.v_proj")]
    entries = [entry_for(model, path, gain=gain) for path, gain in zip(paths, (few, many), strict=True)]
    plan = plan_growth(report_for(model, *entries), model, PaperGrowthConfig(at=[0.5], layer_threshold=4))
    assert chosen(plan) == {(paths[1], "zero_gain"): (0, 1, 2, 3)}


def test_depth_is_limited():
    model = tiny_model()
    grow_(model, plan_for(model, "zero_gain", [0, 1, 2]))
    for max_depth, deep in ((1, False), (2, True)):
        plan = plan_growth(
            report_for(model), model, GrowthConfig(max_depth=max_depth, criterion="depth", max_growth=9)
        )
        assert any(growth.linear.endswith(".skip.linear") for growth in plan.growths) == deep
    only_width = plan_growth(report_for(model), model, GrowthConfig(max_depth=0))
    assert {growth.operator for growth in only_width.growths} == {"split"}


def test_depth_serves_at_both_ends_of_the_spectrum():
    model = tiny_model()
    fc1 = path_of(model, "mlp.fc1")
    entry = entry_for(model, fc1, gain=torch.ones(24), eigenvalue=torch.linspace(-1, 1, 24))
    plan = plan_growth(report_for(model, entry), model, GrowthConfig(at=[0.5], max_growth=9))
    assert plan.growths[0].neurons == tuple(range(24)) and plan.growths[0].gains.tolist() == [0.0] * 24


def test_frozen_linears_do_not_grow():
    model = tiny_model()
    model.vit.layers[0].requires_grad_(False)
    plan = plan_growth(report_for(model), model, GrowthConfig())
    assert plan and all(".layers.1." in growth.linear for growth in plan.growths)


def test_quotas_share_the_budget_of_an_event():
    model = tiny_model()
    config = PaperGrowthConfig(event_budget=400, max_growth=None, quotas=True, operator="residual_pair")
    plan = plan_growth(report_for(model), model, config)
    spent = Counter()
    for growth in plan.growths:
        group = next(i for i, names in enumerate(QUOTAS) if any(growth.linear.endswith(n) for n in names))
        spent[group] += 2 * growth.directions.numel()
    assert len(spent) == 4 and all(0 < value <= 100 for value in spent.values())


def test_nothing_significant_is_a_valid_answer():
    model = tiny_model()
    entry = entry_for(model, path_of(model, "mlp.fc1"), significant=torch.zeros(24, dtype=torch.bool))
    plan = plan_growth(report_for(model, entry), model, GrowthConfig())
    assert not plan and plan.parameters == 0 and GrowthPlan.from_json(plan.to_json()).digest() == plan.digest()
    event = grow_(model, plan)
    assert event.layers == [] and event.criterion == "auto"


def test_the_budget_is_measured_from_the_size_before_the_first_event():
    model = tiny_model()
    initial = count_parameters(model)
    config = GrowthConfig(at=[0.1, 0.2, 0.3], max_growth=1.3)
    for event in range(4):
        expected = (1.3 * initial - count_parameters(model)) / (3 - event) if event < 3 else 0.0
        assert event_budget(model, config, event) == pytest.approx(expected)
        grow_(model, plan_growth(report_for(model), model, config, event=event))
    assert 1.25 * initial < count_parameters(model) <= 1.3 * initial
    assert len(GrowthHistory.from_model(model)) == 4


def test_auto_keeps_the_kind_of_the_branches():
    model = tiny_model()
    grow_(model, plan_for(model, "residual_pair", [1]))
    plan = plan_growth(report_for(model), model, GrowthConfig())
    assert {growth.operator for growth in plan.growths} == {"split", "residual_pair"}
    with pytest.raises(ValueError, match="keeps one kind"):
        plan_growth(report_for(model), model, GrowthConfig(operator="zero_gain"))


def test_a_stale_report_is_refused():
    model = tiny_model()
    report = report_for(model)
    grow_(model, plan_for(model, "split", [0]))
    with pytest.raises(ValueError, match="Measure anew"):
        plan_growth(report, model, GrowthConfig())


def test_a_damaged_plan_is_refused():
    text = plan_for(tiny_model(), "split", [1]).to_json()
    start = text.index('"directions": "') + len('"directions": "')
    damaged = text[:start] + ("A" if text[start] != "A" else "B") + text[start + 1 :]
    with pytest.raises(ValueError, match="hash"):
        GrowthPlan.from_json(damaged)
    with pytest.raises(ValueError, match="schema"):
        GrowthPlan.from_json('{"schema": 99}')


def test_digests_tell_plans_apart():
    model = tiny_model()
    plan = plan_for(model, "split", [1, 2])
    growth = plan.growths[0]
    for change in ({"steps": growth.steps * 2}, {"neurons": (1, 3)}, {"directions": growth.directions * 2}):
        assert GrowthPlan((replace(growth, **change),)).digest() != plan.digest()
