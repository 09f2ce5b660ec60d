"""A plan without growths says which option held the best candidate back, with its numbers."""

import json
from dataclasses import replace

import pytest
import torch
from growth_cases import entry_for, path_of, report_for, tiny_model

from hf_saddle.growth import (
    GrowthConfig,
    GrowthHistory,
    GrowthPlan,
    PaperGrowthConfig,
    grow_,
    plan_growth,
)


def noisy(model, path, eigenvalues, error=0.5, **fields):
    """An entry whose eigenvalues stand `value / error` standard errors from zero; none is significant."""
    values = torch.zeros(24)
    values[: len(eigenvalues)] = torch.tensor(eigenvalues)
    entry = entry_for(model, path, eigenvalue=values, gain=values.abs(), significant=torch.zeros(24, dtype=torch.bool))
    return replace(entry, standard_error=torch.full((24,), error), **fields)


def why(model, report, config) -> str:
    plan = plan_growth(report, model, config)
    assert not plan and GrowthPlan.from_json(plan.to_json()).held_back == plan.held_back
    grow_(model, plan)
    assert GrowthHistory.from_model(model).events[-1].held_back == plan.held_back
    return plan.held_back


def test_significance():
    model = tiny_model()
    fc1 = path_of(model, "mlp.fc1")
    told = why(model, report_for(model, noisy(model, fc1, [-0.25, -0.75, 0.5])), GrowthConfig(significance=3))
    assert told.startswith("Significance: none of 24 neurons in 1 linears")
    assert f"neuron 1 of {fc1} (depth): eigenvalue -0.75 ± 0.5, 1.5 standard errors from zero" in told
    assert "`significance=3`" in told


def test_the_budget():
    model = tiny_model()
    fc1 = path_of(model, "mlp.fc1")
    gain = torch.zeros(24)
    gain[[3, 7]] = torch.tensor([1.0, 2.0])
    config = GrowthConfig(at=[0.5], max_growth=None, event_budget=17.9)
    told = why(model, report_for(model, entry_for(model, fc1, gain=gain)), config)
    assert told.startswith("Budget: there are 2 candidates, but this event may add 17 parameters, and the cheapest")
    assert f"costs 18. The best is neuron 7 of {fc1}" in told and "ranked by 2." in told


def test_the_threshold_of_a_layer():
    model = tiny_model()
    gain = torch.zeros(24)
    gain[[3, 7]] = torch.tensor([1.0, 2.0])
    report = report_for(model, entry_for(model, path_of(model, "mlp.fc1"), gain=gain))
    told = why(model, report, PaperGrowthConfig(layer_threshold=60))
    assert told.startswith("Threshold: no linear has `layer_threshold=60` candidates, the most are 2 of 2.")


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"linears": ["mlp.fc2"]}, "1 not in `linears`"),
        ({"layers": [1]}, "1 not in `layers`"),
        ({"max_depth": 0}, "1 as deep as `max_depth=0` allows"),
    ],
    ids=str,
)
def test_limits_of_layers(fields, limit):
    model = tiny_model()
    fc1 = path_of(model, "mlp.fc1")
    told = why(model, report_for(model, entry_for(model, fc1)), GrowthConfig(**fields))
    assert told.startswith(f"Layer limits: none of 1 measured linears may grow ({limit}).")
    assert f"of {fc1} (depth)" in told


def test_frozen_layers_and_nothing_measured():
    model = tiny_model()
    fc1 = path_of(model, "mlp.fc1")
    report = report_for(model, entry_for(model, fc1))
    model.get_submodule(fc1).weight.requires_grad_(False)
    assert "(1 frozen)" in why(model, report, GrowthConfig())
    skipped = replace(report, layers=(), skipped={"a.b": "it has no second derivative"})
    told = why(model, skipped, GrowthConfig())
    assert told == "Nothing was measured by width or depth where the model may grow; a.b: it has no second derivative."


def test_eigenvalues_of_the_wrong_sign():
    model = tiny_model()
    entry = entry_for(model, path_of(model, "mlp.fc1"), "width", gain=torch.zeros(24), eigenvalue=torch.ones(24))
    assert "No eigenvalue has the sign that growth needs." in why(model, report_for(model, entry), GrowthConfig())


def test_a_plan_that_grows_counts_its_candidates_and_has_no_reason():
    model = tiny_model()
    gain = torch.zeros(24)
    gain[[3, 7, 9]] = 1.0
    config = GrowthConfig(at=[0.5], event_budget=18, max_growth=None)
    plan = plan_growth(report_for(model, entry_for(model, path_of(model, "mlp.fc1"), gain=gain)), model, config)
    assert plan.held_back is None and plan.candidates == {"zero_gain": 3}


def test_histories_and_plans_of_before_are_read():
    model = tiny_model()
    plan = plan_growth(report_for(model), model, GrowthConfig())
    old = json.loads(plan.to_json()) | {"schema": 1}
    del old["candidates"], old["held_back"]
    assert GrowthPlan.from_json(json.dumps(old)).growths[0].neurons == plan.growths[0].neurons
    grow_(model, plan)
    history = GrowthHistory.from_model(model)
    values = history.to_dict()
    for event in values["events"]:
        del event["candidates"], event["held_back"]
    assert history.events[0].candidates
    assert GrowthHistory.from_dict(values).events == [replace(event, candidates={}) for event in history.events]
