"""Heads that are chosen by measurement: what is measured is what happens, and what is chosen fits and pays."""

import copy
from dataclasses import replace

import pytest
import torch
from family_cases import CASES, EVERY, answers, exact_norms_, family_model, inputs

from hf_saddle.curvature.heads import capture_heads
from hf_saddle.growth import (
    GrowthHistory,
    GrowthPlan,
    count_macs,
    count_parameters,
    grow_,
    head_growth,
    plan_heads,
    probe_loss,
    score_heads,
)
from hf_saddle.growth.choice.head_scores import measurable
from hf_saddle.growth.choice.joint import judge
from hf_saddle.models import FAMILIES


HEADED = [name for name in EVERY if not isinstance(FAMILIES[CASES[name][0]].heads, str)]
# Their attention modules share relative positions, so that a head comes in all blocks of a list.
SHARED = [name for name in CASES if CASES[name][0] == "t5"]
every_family = pytest.mark.parametrize("name", HEADED)


def probe(name, dtype=torch.float64, copies=4):
    """Two batches of six samples."""
    parts = []
    for shift in range(copies):
        generator = torch.Generator().manual_seed(shift)
        parts.append({})
        for key, value in inputs(name).items():
            noise = torch.randn(value.shape, generator=generator)
            tokens = value if "mask" in key else value.roll(shift, -1)
            parts[-1][key] = (value + noise).to(dtype) if value.is_floating_point() else tokens
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{key: torch.cat([one[key], two[key]]) for key in one} for one, two in pairs]


def loss(model, batch):
    """A smooth mean over samples of all that a model answers."""
    found = model(**batch)
    answer = found.get("logits", found.get("last_hidden_state"))
    weights = torch.randn(answer.shape[1:], generator=torch.Generator().manual_seed(4), dtype=answer.dtype)
    return torch.log_softmax(answer, -1).mul(weights).sum() / len(answer)


def state(model):
    return {key: (id(value), value.clone()) for key, value in model.state_dict(keep_vars=True).items()}


@pytest.mark.thinned(3)
@every_family
def test_the_loss_changes_by_splits_as_their_curvature_says(name, monkeypatch):
    exact_norms_(monkeypatch)
    model, batches = family_model(name, dtype=torch.float64), probe(name)
    paths = measurable(model)
    growths, predicted, by_forms = [], 0.0, 0.0
    for index, (path, splits) in enumerate(capture_heads(model, batches, paths, loss).items()):
        pairs = splits.pairs(10, index)
        growth = head_growth(
            model, path, splits.number, "split", directions=pairs.vectors, step_size=1e-3 if index % 2 else 5e-4
        )
        predicted += float((0.5 * pairs.values * growth.steps.double() ** 2).sum())
        forms = splits.forms((growth.directions * growth.steps[:, None]).double())
        assert forms.shape == (12, splits.number)
        by_forms += float(forms.mean(dim=0).sum())
        growths.append(growth)
    before = probe_loss(model, batches, loss)
    grow_(model, GrowthPlan(tuple(growths)))
    assert predicted == pytest.approx(by_forms, rel=1e-5)
    assert probe_loss(model, batches, loss) - before == pytest.approx(predicted, rel=2e-3)
    assert predicted < 0


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_eigenpairs_are_those_of_the_dense_matrices(name, monkeypatch):
    exact_norms_(monkeypatch)
    model = family_model(name, dtype=torch.float64)
    path = next(attention.path for attention in model.attentions())
    splits = capture_heads(model, probe(name)[:1], [path], loss)[path]
    pairs = splits.pairs(150, 0)
    size = pairs.vectors.shape[1]
    columns = [
        splits(torch.eye(size, dtype=torch.float64)[:, i : i + 1].expand(-1, splits.number).contiguous())
        for i in range(size)
    ]
    dense = torch.stack(columns, -1).movedim(1, 0)
    torch.testing.assert_close(dense, dense.transpose(1, 2), rtol=1e-9, atol=1e-12)
    values = torch.linalg.eigvalsh(dense)
    torch.testing.assert_close(pairs.values, values[:, 0], rtol=1e-6, atol=1e-9)


@pytest.mark.thinned(3)
@every_family
def test_the_loss_falls_as_new_heads_are_read(name, monkeypatch):
    exact_norms_(monkeypatch)
    model, batches = family_model(name, dtype=torch.float64), probe(name)
    before = state(model)
    scores = score_heads(model, batches, ["new"], candidates=2, loss=loss)
    assert all(before[key][0] == id(value) for key, value in model.state_dict(keep_vars=True).items())
    places = {attention.stack or attention.path for attention in model.attentions()}
    assert model.growth_history is None and scores.values.shape == (12, 2 * len(places))
    # By central differences, on the samples that the scores are of.
    kept = [{key: value[half::2] for key, value in batch.items()} for half in (0, 1) for batch in batches]
    for index in (0, len(scores.candidates) - 1):
        grown, weights = copy.deepcopy(model), scores.outgoing[index]
        grow_(grown, GrowthPlan(scores.candidates[index]))
        readers = {attention.path: grown.get_submodule(attention.heads.reader) for attention in grown.attentions()}
        modules = [readers[growth.linear] for growth in scores.candidates[index]]
        new = [
            reader.layout.matrix(reader.weight.data)[:, -weight.shape[1] :]
            for reader, weight in zip(modules, weights, strict=True)
        ]
        assert not any(bool(columns.any()) for columns in new)
        assert sum(float(weight.square().sum()) for weight in weights) == pytest.approx(1)
        for judges, part in ((False, kept[:2]), (True, kept[2:])):
            losses = []
            for size in (1e-4, -1e-4):
                for columns, weight in zip(new, weights, strict=True):
                    columns[:] = size * weight
                losses.append(probe_loss(grown, part, loss))
            slope = scores.values[scores.judges == judges][:, index].mean()
            assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(float(slope), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", SHARED)
def test_a_head_of_all_blocks_of_a_list_is_one_candidate_that_does_what_its_score_says(name, monkeypatch):
    exact_norms_(monkeypatch)
    model, batches = family_model(name, dtype=torch.float64), probe(name)
    scores = score_heads(model, batches, candidates=2, step_size=1e-4, loss=loss)
    stacks = {}
    for attention in model.attentions():
        stacks.setdefault(attention.stack, []).append(attention.path)
    assert [[growth.linear for growth in modules] for modules in scores.candidates] == [
        paths for way in (2, 4) for paths in stacks.values() for _ in range(way)
    ]
    kept = [{key: value[half::2] for key, value in batch.items()} for half in (0, 1) for batch in batches]
    for index, modules in enumerate(scores.candidates):
        grown = copy.deepcopy(model)
        event = grow_(grown, GrowthPlan(modules))
        added = event.parameters_after - event.parameters_before, event.macs_after - event.macs_before
        assert added == (scores.costs[index].parameters, scores.costs[index].macs)
        for judges, part in ((False, kept[:2]), (True, kept[2:])):
            moved = probe_loss(grown, part, loss) - probe_loss(model, part, loss)
            slope = float(scores.values[scores.judges == judges][:, index].mean())
            wanted = slope if scores.operators[index] == "split_head" else 0.0
            assert moved == pytest.approx(wanted, rel=1e-4, abs=1e-13)


@pytest.mark.parametrize("name", SHARED)
def test_heads_of_shared_positions_are_planned_within_a_budget(name):
    model = family_model(name)
    scores = score_heads(model, probe(name, torch.float32, 8), candidates=2, loss=loss)
    plan = plan_heads(scores, number=4, significance=-1e9)
    before, parameters = answers(model, name), count_parameters(model)
    rest = replace(plan, growths=tuple(growth for growth in plan.growths if growth.operator == "new_head"))
    twin = copy.deepcopy(model)
    grow_(twin, rest)
    assert torch.equal(answers(twin, name), before)
    event = grow_(model, GrowthPlan.from_json(plan.to_json()))
    assert event.heads > 0 and count_parameters(model) == parameters + plan.parameters
    GrowthHistory.from_model(model).check(model)


@pytest.fixture(scope="module")
def scored():
    name = "LlamaForCausalLM"
    model = family_model(name)
    return model, score_heads(model, probe(name, torch.float32, 8), candidates=2, loss=loss)


@pytest.mark.parametrize("unit", ["parameters", "macs"])
def test_a_plan_keeps_to_its_budget_and_costs_what_it_says(scored, unit):
    model, scores = copy.deepcopy(scored[0]), scored[1]
    assert {*scores.operators} == {"new_head", "split_head"}
    budget = 2.5 * getattr(scores.costs[0], unit)
    plan = plan_heads(scores, budget=budget, unit=unit, significance=-1e9)
    parameters, macs = count_parameters(model), count_macs(model)
    event = grow_(model, GrowthPlan.from_json(plan.to_json()))
    assert (count_parameters(model) - parameters, count_macs(model) - macs) == (plan.parameters, plan.macs)
    assert 0 < getattr(plan, unit) <= budget and event.criterion == "heads"
    assert plan.candidates == {"new_head": 4, "split_head": 4}


def test_heads_of_one_module_that_are_chosen_together_are_numbered_one_after_the_other(scored):
    model, scores = scored
    only = [index for index, operator in enumerate(scores.operators) if operator == "new_head"]
    same = replace(
        scores,
        candidates=tuple(scores.candidates[i] for i in only),
        values=scores.values[:, only],
        costs=tuple(scores.costs[i] for i in only),
        outgoing=tuple(scores.outgoing[i] for i in only),
    )
    plan = plan_heads(same, number=4, significance=-1e9)
    assert [growth.neurons for growth in plan.growths] == [(2, 3), (2, 3)]
    grow_(copy.deepcopy(model), plan)


def test_the_joint_gain_is_that_of_the_regression_on_the_scores(scored):
    scores = scored[1]
    chosen = [0, 2, 5]
    found = judge(scores.columns.of(chosen), 1.0)
    values = scores.values[~scores.judges][:, chosen]
    free = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    change = values @ free
    (change + 0.5 * change.square()).mean().backward()
    fisher = values.t() @ values / len(values)
    natural = -torch.linalg.inv(fisher + 0.3 * torch.diag(fisher.diag())) @ free.grad
    assert scores.terms == 1 and float(natural[2]) > 0
    # Nothing but a split has a bound: where it would be passed, the others are solved for what is left to them.
    ridged = fisher + 0.3 * torch.diag(fisher.diag())
    wanted = natural
    if float(natural[2]) > 1:
        first = -torch.linalg.inv(ridged[:2, :2]) @ (free.grad[:2] + ridged[:2, 2])
        wanted = torch.cat([first, torch.ones(1, dtype=torch.float64)])
    torch.testing.assert_close(found.coefficients, wanted)
    change = scores.values[scores.judges][:, chosen] @ found.coefficients
    assert found.gain == pytest.approx(-float((change + 0.5 * change**2).mean())) and found.error > 0


def test_heads_that_do_not_pay_on_other_samples_do_not_grow(scored):
    scores = replace(scored[1], values=torch.where(scored[1].judges[:, None], -1.0, 1.0) * scored[1].values.abs())
    plan = plan_heads(scores, number=2)
    assert not plan and "held-out samples" in plan.held_back
    assert "No head fits" in plan_heads(scored[1], budget=1).held_back


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "Say how many"), ({"number": 0}, "Say how many"), ({"number": 1, "unit": "seconds"}, "`unit` must be")],
)
def test_plans_that_cannot_be_meant_are_refused(scored, arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_heads(scored[1], **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ResNetModel", {}, "no attention heads"),
        ("T5EncoderModel", {"paths": ["encoder.block.1.layer.0.SelfAttention"]}, "the same heads grow in all of"),
        ("LlamaForCausalLM", {"ways": ["copy"]}, "`ways` must be of new, split"),
        ("LlamaForCausalLM", {"paths": ["model.layers.0.mlp"]}, "no attention"),
    ],
)
def test_measurements_that_cannot_be_meant_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        score_heads(family_model(name), probe(name, torch.float32), loss=loss, **arguments)


def test_a_probe_that_is_too_small_is_refused():
    name = "LlamaForCausalLM"
    with pytest.raises(ValueError, match="The probe has 6 samples"):
        score_heads(family_model(name), probe(name, torch.float32, 2), loss=loss)
