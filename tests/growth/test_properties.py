"""Whatever the shapes, plans and sequences of events: what must hold after each of them, by random trial."""

import copy
import tempfile

import pytest
import torch
from growth_cases import batch, logits, report_for, tiny_model, train, wake_
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hf_saddle.growth import (
    GrowthHistory,
    GrowthPlan,
    LayerGrowth,
    PaperGrowthConfig,
    count_macs,
    count_parameters,
    grow_,
    merge_pairs_,
    plan_growth,
)
from hf_saddle.growth.costs import plan_cost
from hf_saddle.growth.operators import OPERATORS
from hf_saddle.models.shapes import Shapes


SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "phases": [Phase.generate],  # an example is too slow to be shrunk; its seed is in the message
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
KINDS = {"gain": ("zero_gain", "opposed_pair"), "residual_pair": ("residual_pair",)}

models = st.builds(
    tiny_model,
    kind=st.sampled_from(["vit", "deit"]),
    seed=st.integers(0, 100),
    hidden_size=st.sampled_from([8, 12]),
    intermediate_size=st.integers(3, 13),
    num_hidden_layers=st.integers(1, 2),
    num_attention_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([3, 4]),
    qkv_bias=st.booleans(),
    hidden_act=st.sampled_from(["gelu", "silu"]),
)


def draw_plan(data, model, kind):
    """Up to four growths of any linears by any operators that the model allows."""
    growths, used = [], set()
    linears = list(model.growable_linears())
    for _ in range(data.draw(st.integers(1, 4), label="growths")):
        site = data.draw(st.sampled_from(linears), label="linear")
        path, module = site.path, site.module
        operators = list(KINDS[kind]) if site.depth < 3 else []
        has_units = any(site.module.skip is not None for site in linears)
        present = kind if has_units else None
        operators += [name for name, operator in OPERATORS.items() if operator.can_widen(site, present)]
        free = [n for n in range(module.out_features) if (path, n) not in used]
        if not operators or not free:
            continue
        operator = data.draw(st.sampled_from(operators), label="operator")
        neurons = data.draw(st.lists(st.sampled_from(free), unique=True, min_size=1, max_size=4), label="neurons")
        used |= {(path, neuron) for neuron in neurons}
        growths.append(LayerGrowth.by_hand(model, path, operator, neurons, seed=len(growths)))
    return GrowthPlan(tuple(growths))


def check_consistent(model):
    """Config, modules, buffers and history say the same, and a fresh model of the config has the same tensors."""
    assert Shapes.of_config(model.config) == model.shapes()
    with torch.device("meta"):
        fresh = type(model)(copy.deepcopy(model.config))
    assert [(n, p.shape) for n, p in fresh.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]
    assert list(fresh.state_dict()) == list(model.state_dict())
    GrowthHistory.from_model(model).check(model)


@given(data=st.data(), model=models, kind=st.sampled_from(["gain", "residual_pair"]))
@settings(max_examples=25, **SETTINGS)
def test_sequences_of_growths_by_hand(data, model, kind):
    model.eval()
    start = copy.deepcopy(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for event in range(data.draw(st.integers(1, 6), label="events")):
        plan = draw_plan(data, model, kind)
        copied = GrowthPlan.from_json(plan.to_json())
        assert copied.digest() == plan.digest()
        size, before = count_parameters(model), logits(model)
        cost = plan_cost(model, plan.growths)
        record = grow_(model, copied, optimizer, step=event)
        assert count_parameters(model) == size + cost.parameters == record.parameters_after
        exact = all(growth.operator not in ("split", "net2net") for growth in plan.growths)
        assert not exact or torch.allclose(logits(model), before, atol=2e-5)
        check_consistent(model)
        assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True))
        train(model, optimizer, 1, seed=event)
    assert count_macs(model) == record.macs_after
    wake_(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.growth_history == model.growth_history
    replayed = type(model)(GrowthHistory.from_model(loaded).apply(start))
    assert replayed.shapes() == model.shapes() and replayed.config.skip_unit == model.config.skip_unit
    assert [(n, t.shape) for n, t in replayed.state_dict().items()] == [
        (n, t.shape) for n, t in model.state_dict().items()
    ]
    if model.config.skip_unit == "residual_pair":
        before = logits(model)
        merge_pairs_(model, optimizer)
        assert torch.equal(logits(model), before)
        check_consistent(model)


@given(
    data=st.data(),
    model=models,
    multiple=st.floats(1.01, 3.0),
    unit=st.sampled_from(["parameters", "macs"]),
    schedule=st.sampled_from(["constant", "linear", "lr"]),
    operator=st.sampled_from(["auto", "split", "zero_gain", "residual_pair", "opposed_pair"]),
    events=st.integers(1, 4),
)
@settings(max_examples=25, **SETTINGS)
def test_planned_events_keep_the_budget(data, model, multiple, unit, schedule, operator, events):
    size = count_parameters if unit == "parameters" else count_macs
    initial = size(model)
    limit = {"max_macs": multiple * initial} if unit == "macs" else {"max_growth": multiple}
    config = PaperGrowthConfig(
        **limit,
        schedule=schedule,
        operator=operator,
        at=[event / 10 for event in range(events)],
        quotas=data.draw(st.booleans()),
        layer_threshold=data.draw(st.sampled_from([1, 3])),
    )
    for event in range(events):
        report, before = report_for(model), size(model)
        plan = plan_growth(report, model, config, event=event, lr_ratio=data.draw(st.floats(0, 1)))
        assert (plan.parameters if unit == "parameters" else plan.macs) <= plan.budget
        grow_(model, plan)
        assert size(model) - before == (plan.parameters if unit == "parameters" else plan.macs)
        check_consistent(model)
    assert size(model) <= multiple * initial
    model(**batch()).loss.backward()


@pytest.mark.slow
@given(data=st.data(), model=models, kind=st.sampled_from(["gain", "residual_pair"]))
@settings(max_examples=400, **SETTINGS)
def test_many_sequences_of_growths_by_hand(data, model, kind):
    test_sequences_of_growths_by_hand.hypothesis.inner_test(data, model, kind)
