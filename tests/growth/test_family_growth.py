"""Growth of every family: what it keeps, costs, predicts, and leaves to optimizer, file and history."""

import copy
from dataclasses import replace

import pytest
import torch
from family_cases import (
    CASES,
    EVERY,
    KINDS,
    answers,
    assert_state_is_that_of_a_twin_that_grew_before,
    exact_norms_,
    family_model,
    family_plan,
    loss_of,
    one_block,
    paths,
    predicted_by_splitting,
    predicted_by_units,
)
from torch import nn
from transformers.optimization import Adafactor

from hf_saddle.curvature import CurvatureReport, LayerCurvature
from hf_saddle.growth import (
    GrowthConfig,
    GrowthHistory,
    GrowthPlan,
    LayerGrowth,
    count_macs,
    count_parameters,
    grow_,
    plan_growth,
    probe_loss,
    score_growths,
)
from hf_saddle.growth.costs import plan_cost
from hf_saddle.growth.operators import NEURON_OPERATORS, OPERATORS


every_kind = pytest.mark.parametrize("name", KINDS)
PREDICTED = [name for name in (*KINDS, "ViTForImageClassification") if CASES[name][0] not in ("dinov2", "whisper")]


@torch.no_grad()
def wake_(model, seed=5):
    """Move the branch units away from where they answer nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".skip." in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)


def assert_same_tensors(one, other):
    found, wanted = one.state_dict(), other.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())


def deepened(name, **kwargs):
    """A model with nested units of all layers that answer something, some neurons having several."""
    model = family_model(name, **kwargs)
    grow_(model, family_plan(model, "zero_gain", [0, 2, 5]))
    grow_(model, family_plan(model, "zero_gain", [2, 3]))
    grow_(model, family_plan(model, "zero_gain", [1, 0], depth=1))
    wake_(model)
    return model


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, torch.float32) for name in CASES] + [(name, torch.bfloat16) for name in KINDS]
)
def test_units_of_all_layers_change_nothing_and_come_back_from_files(name, dtype, tmp_path):
    model = family_model(name, dtype, smooth=False, **one_block(name))
    before = answers(model, name)
    for depth in range(2):
        plan = family_plan(model, "zero_gain", [0, 3, 5] if depth == 0 else [2, 0], depth=depth)
        event = grow_(model, GrowthPlan.from_json(plan.to_json()))
        assert torch.equal(answers(model, name), before)
        assert len(plan.growths) == sum(site.depth == depth for site in model.growable_linears())
        assert (count_parameters(model), count_macs(model)) == (event.parameters_after, event.macs_after)
    wake_(model)
    model.save_pretrained(tmp_path)
    # Copied, since the memory of a file is aligned otherwise, by which products are rounded.
    loaded = copy.deepcopy(type(model).from_pretrained(tmp_path, dtype=dtype))
    assert_same_tensors(loaded, model)
    # Frequencies of rotary embeddings are made in float32, but were cast here.
    assert dtype is torch.bfloat16 or torch.equal(answers(loaded, name), answers(model, name))
    history = GrowthHistory.from_model(loaded)
    history.check(loaded)
    small = family_model(name, smooth=False, **one_block(name))
    assert history.apply(small.config).skip_sizes == model.config.skip_sizes


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", EVERY)
def test_splits_of_all_neurons_keep_the_function_to_second_order(name, monkeypatch):
    exact_norms_(monkeypatch)
    model = deepened(name, dtype=torch.float64)
    before = answers(model, name)
    for depth in (0, 1):
        moved = []
        for step in (0.0, 0.02, 0.01):
            grown = copy.deepcopy(model)
            grow_(grown, family_plan(grown, "split", [0, 2, 5][: 3 - depth], depth=depth, steps=step))
            moved.append(float((answers(grown, name) - before).abs().max()) / float(before.abs().max()))
        assert moved[0] <= 2e-15
        assert 3.8 < moved[1] / moved[2] < 4.2, moved


@pytest.mark.thinned(5)
@every_kind
@pytest.mark.parametrize("operator", NEURON_OPERATORS)
def test_an_operator_costs_what_is_booked_everywhere_at_once(name, operator):
    if operator == "residual_pair":
        model = family_model(name, **one_block(name))
        grow_(model, family_plan(model, operator, [0, 3]))
    else:
        model = deepened(name, **one_block(name))
    for depth in (0, 1):
        plan = family_plan(model, operator, [1, 2, 0][: 3 - depth], depth=depth)
        parameters, macs = count_parameters(model), count_macs(model)
        cost = plan_cost(model, plan.growths)
        twin = copy.deepcopy(model)
        event = grow_(model, plan)
        assert count_parameters(model) - parameters == cost.parameters == event.parameters_after - parameters
        assert count_macs(model) - macs == cost.macs
        grow_(twin, GrowthPlan.from_json(plan.to_json()))
        assert_same_tensors(twin, model)
        assert answers(model, name).isfinite().all()


def test_all_operators_at_once_cost_what_is_booked():
    """Neurons that are split while units come to feed the layers that read them, or have rows of theirs."""
    for name in ("LlamaForCausalLM", "ResNetForImageClassification"):
        model = deepened(name)
        plans = [family_plan(model, "split", [0, 2]), family_plan(model, "zero_gain", [1, 5])]
        plans += [family_plan(model, "split", [0], depth=1), family_plan(model, "opposed_pair", [2], depth=1)]
        plan = GrowthPlan(tuple(growth for part in plans for growth in part.growths))
        parameters, cost = count_parameters(model), plan_cost(model, plan.growths)
        event = grow_(model, plan)
        assert count_parameters(model) - parameters == cost.parameters
        assert count_macs(model) == event.macs_after
        GrowthHistory.from_dict(model.growth_history).check(model)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", PREDICTED)
def test_the_loss_changes_by_what_the_formulas_say(name, monkeypatch):
    exact_norms_(monkeypatch)
    model, loss = family_model(name, torch.float64), loss_of(name)
    before = float(loss(model).detach())
    for operator, predicted, sizes in (
        ("split", predicted_by_splitting, (1e-2, 1e-3)),
        ("zero_gain", predicted_by_units, (1e-2, 1e-3)),
    ):
        errors = []
        for size in sizes:
            scale = {"steps": size} if operator == "split" else {"steps": 0.05, "gains": size}
            plan, grown = family_plan(model, operator, [0, 2, 5], **scale), copy.deepcopy(model)
            expected = predicted(model, plan.growths, loss)
            grow_(grown, plan)
            errors.append(abs((float(loss(grown).detach()) - before) / expected - 1))
        print(name, operator, errors)
        assert errors[1] < 1e-3 and (errors[1] < errors[0] / 4 or errors[0] < 1e-4)


@pytest.mark.parametrize("operator", ["split", "zero_gain"])
@pytest.mark.parametrize(
    "name", ["GPT2LMHeadModel", "LlamaForCausalLM", "ConvNextForImageClassification", "ResNetModel"]
)
def test_scores_say_what_small_steps_do(name, operator, monkeypatch):
    exact_norms_(monkeypatch)
    model, loss = family_model(name, torch.float64), loss_of(name)
    batches, measure = [torch.zeros(3)] * 3, lambda model, batch: loss(model)
    plan = family_plan(model, operator, [0, 2, 5], steps=0.05)
    means = score_growths(model, plan.growths, batches, loss=measure).values.mean(dim=0)
    before, size = probe_loss(model, batches, measure), 1e-3
    if operator == "split":
        moved, expected = (
            [replace(growth, steps=growth.steps * size) for growth in plan.growths],
            means.sum() * size**2,
        )
    else:
        gains = torch.split(-means.sign().float() * size, [len(growth.neurons) for growth in plan.growths])
        moved = [replace(growth, gains=own) for growth, own in zip(plan.growths, gains, strict=True)]
        expected = -means.abs().sum() * size
    grow_(model, replace(plan, growths=tuple(moved)))
    change = probe_loss(model, batches, measure) - before
    assert expected != 0 and change == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "ResNetForImageClassification"])
@pytest.mark.parametrize("momentum", [False, True], ids=["adamw", "sgd"])
def test_state_after_a_split_is_that_of_a_twin_that_was_split_before(name, momentum):
    def make(name, **kwargs):
        model = deepened(name, **kwargs)
        model.config.use_cache = False
        return model

    def split_(model, optimizer):
        grow_(model, family_plan(model, "split", [0, 2, 5], steps=0.0), optimizer)

    model, twin = assert_state_is_that_of_a_twin_that_grew_before(make, split_, name, momentum, rtol=1e-9, atol=1e-14)
    assert any("normalization" in key for key, _ in model.named_parameters()) == ("ResNet" in name)
    for key, buffer in twin.named_buffers():
        torch.testing.assert_close(dict(model.named_buffers())[key], buffer, rtol=1e-12, atol=1e-15)


ADAFACTORS = {
    "torch": (lambda p: torch.optim.Adafactor(p, lr=0.0), "row_var", "col_var"),
    "transformers": (
        lambda p: Adafactor(p, lr=0.0, relative_step=False, scale_parameter=False),
        "exp_avg_sq_row",
        "exp_avg_sq_col",
    ),
}


@pytest.mark.parametrize("kind", ADAFACTORS)
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "ResNetForImageClassification"])
def test_factored_estimates_of_old_entries_stay(name, kind):
    make, row, column = ADAFACTORS[kind]
    model = family_model(name)
    optimizer = make(model.parameters())

    def estimate(state, parameter):
        rows, columns = (state[key].reshape(shape) for key, shape in _factored(parameter, row, column))
        return rows * columns / rows.mean(-2, keepdim=True)

    for _ in range(2):
        loss_of(name)(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = {p: estimate(optimizer.state[p], p) for p in model.parameters() if row in optimizer.state[p]}
    plan = family_plan(model, "split", [0, 2, 5])
    event = grow_(model, plan, optimizer)
    checked = 0
    for old, new in event.replaced.items():
        if old not in before:
            continue
        now = estimate(optimizer.state[new], new)
        part = tuple(slice(0, size) for size in old.shape)
        keep = [torch.tensor([i for i in range(size) if i not in (0, 2, 5)]) for size in old.shape[:2]]
        now, then = (value.index_select(0, keep[0]).index_select(1, keep[1]) for value in (now[part], before[old]))
        torch.testing.assert_close(now, then, rtol=1e-5, atol=0)
        checked += 1
    assert checked >= len(plan.growths)
    loss_of(name)(model).backward()
    optimizer.step()


def _factored(parameter, row, column):
    shape = parameter.shape
    return (row, (*shape[:-1], 1)), (column, (*shape[:-2], 1, shape[-1]))


def test_statistics_of_neurons_go_with_their_copies():
    name = "ResNetForImageClassification"
    model = family_model(name, torch.float64).train()
    answers(model, name)  # notes means and numbers of batches
    norms = {key: copy.deepcopy(part) for key, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    before = answers(model.eval(), name)
    grow_(model, family_plan(model, "split", [1, 4], steps=0.0))
    torch.testing.assert_close(answers(model, name), before, rtol=1e-13, atol=1e-15)
    grown = 0
    for key, norm in norms.items():
        now = model.get_submodule(key)
        grown += now.num_features > norm.num_features
        origin = [*range(norm.num_features), 1, 4] if now.num_features > norm.num_features else slice(None)
        for field, value in norm.state_dict().items():
            assert torch.equal(now.state_dict()[field], value[origin] if value.dim() else value)
    assert grown == len(paths(model, "split"))
    train = answers(model.train(), name)
    assert train.isfinite().all() and int(now.num_batches_tracked) == int(norm.num_batches_tracked) + 1


def test_memory_formats_of_kernels_stay_also_those_of_their_state():
    """Fused optimizers go through parameters and state as they lie in memory."""
    name = "ResNetForImageClassification"
    model = family_model(name).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step():
        loss_of(name)(model).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    grow_(model, family_plan(model, "split", [0, 3]), optimizer)
    grow_(model, family_plan(model, "zero_gain", [1, 2], gains=0.1), optimizer)
    step()
    kernels = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    for kernel in kernels:
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        assert all(optimizer.state[kernel][key].stride() == kernel.stride() for key in ("exp_avg", "exp_avg_sq"))


def first(model, operator):
    return paths(model, operator)[0]


REFUSED = {
    "width of ReLU": (
        "T5EncoderModel",
        lambda m: LayerGrowth.by_hand(m, "encoder.block.0.layer.1.DenseReluDense.wi", "split", [0]),
        "piecewise linear.*operator of depth",
    ),
    "width of up": (
        "LlamaForCausalLM",
        lambda m: LayerGrowth.by_hand(m, "model.layers.0.mlp.up_proj", "split", [0]),
        "widens hidden neurons.*not model.layers.0.mlp.up_proj",
    ),
    "pairs of a convolution": (
        "ResNetForImageClassification",
        lambda m: LayerGrowth.by_hand(m, first(m, "zero_gain"), "residual_pair", [0]),
        "which a convolution.*Use `zero_gain`",
    ),
    "new neurons behind a norm": (
        "ResNetForImageClassification",
        lambda m: LayerGrowth.by_hand(m, first(m, "zero_gain"), "gradmax", [0]),
        "behind a batch normalisation",
    ),
    "directions of one layer": (
        "LlamaForCausalLM",
        lambda m: LayerGrowth.by_hand(m, first(m, "split"), "split", [0], directions=torch.ones(1, 33)),
        "must have 66 columns.*got 33",
    ),
    "a bias that is not there": (
        "LlamaForCausalLM",
        lambda m: LayerGrowth.by_hand(m, first(m, "split"), "split", [0], directions=torch.ones(1, 66)),
        "change a bias, which the layer does not have",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_family_cannot_do_is_refused_and_changes_nothing(case):
    name, make, message = REFUSED[case]
    model = family_model(name, smooth=False)
    state = {key: (value, value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    with pytest.raises(ValueError, match=message):
        grow_(model, GrowthPlan((make(model),)))
    for key, value in model.state_dict(keep_vars=True).items():
        assert value is state[key][0] and torch.equal(value, state[key][1])
    assert model.growth_history is None


def test_what_hangs_on_a_norm_or_makes_it_infinite_is_noticed_and_all_is_as_before():
    name = "ResNetForImageClassification"
    model = family_model(name)
    site = next(site for site in model.growable_linears() if site.neurons is not None)
    norm = model.get_submodule(site.neurons.norms[0])
    plan = GrowthPlan((LayerGrowth.by_hand(model, site.path, "split", [0, 1]),))
    hook = norm.weight.register_hook(lambda gradient: gradient)
    with pytest.raises(ValueError, match="normalization.weight has hooks"):
        grow_(model, plan)
    hook.remove()
    with torch.no_grad():
        norm.weight[1] = torch.inf
    state = dict(model.state_dict(keep_vars=True))
    with pytest.raises(ValueError, match="not finite"):
        grow_(model, plan)
    assert all(value is state[key] for key, value in model.state_dict(keep_vars=True).items())
    assert norm.num_features == len(norm.weight) == site.module.out_channels
    with torch.no_grad():
        norm.weight[1] = 1.0
    grow_(model, plan)
    assert norm.num_features == site.module.out_channels == len(norm.running_var)


def entry_for(model, site, criterion):
    operator = OPERATORS["split" if criterion == "width" else "zero_gain"]
    neurons = site.module.neurons
    zeros, gain = torch.zeros(neurons), torch.rand(neurons, generator=torch.Generator().manual_seed(site.block))
    if criterion == "width":
        gain[0], gain[1:] = 100.0, 0.0  # worth its cost, which is more than that of a unit
    return LayerCurvature(
        linear=site.path,
        criterion=criterion,
        eigenvalue=-gain,
        standard_error=zeros,
        residual=zeros,
        direction=torch.zeros(neurons, operator.row_size(site)).index_fill_(1, torch.tensor(0), 1.0),
        response=zeros + 10.0,
        step=zeros + 0.1,
        gain=gain,
        significant=gain > 0,
        fit_eigenvalue=-gain,
        refined=gain > 0,
        cost_parameters=1,
        cost_macs=1,
    )


@pytest.mark.thinned(3)
@every_kind
@pytest.mark.parametrize("unit", ["parameters", "macs"])
def test_a_plan_of_any_family_keeps_to_its_budget(name, unit):
    model = family_model(name)
    sites = list(model.growable_linears())
    entries = [entry_for(model, site, "depth") for site in sites]
    entries += [entry_for(model, site, "width") for site in sites if site.neurons is not None]
    report = CurvatureReport(tuple(entries), samples=8, tokens=40, loss=1.0, seconds=0.0, seed=0, skipped={})
    limits = {"max_growth": 1.2} if unit == "parameters" else {"max_macs": 1.2 * count_macs(model)}
    plan = plan_growth(report, model, GrowthConfig(at=[0.5], **limits))
    parameters, macs = count_parameters(model), count_macs(model)
    grow_(model, plan)
    added = (count_parameters(model) - parameters, count_macs(model) - macs)
    assert added == (plan.parameters, plan.macs)
    assert 0.95 * plan.budget < added[unit == "macs"] <= plan.budget
    assert {growth.operator for growth in plan.growths} == {"split", "zero_gain"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"linears": ["mlp.fc1"]}, "`linears` names .*self_attn.q_proj"),
        ({"layers": [2]}, "the model has 2, counted from 0"),
    ],
)
def test_places_that_a_model_does_not_have_are_refused(fields, message):
    model = family_model("LlamaForCausalLM")
    report = CurvatureReport((), samples=8, tokens=40, loss=1.0, seconds=0.0, seed=0, skipped={})
    with pytest.raises(ValueError, match=message):
        plan_growth(report, model, GrowthConfig(**fields))
    with pytest.raises(ValueError, match="quotas=True.*self_attn.q_proj"):
        plan_growth(report, model, GrowthConfig.paper())


def test_pairs_merge_in_a_family_of_transposed_weights():
    from hf_saddle.growth import merge_pairs_

    name = "GPT2LMHeadModel"
    model = family_model(name)
    plan = family_plan(model, "residual_pair", [0, 2])
    before = answers(model, name)
    grow_(model, replace(plan))
    assert torch.equal(answers(model, name), before)
    wake_(model)
    grown = answers(model, name)
    merge_pairs_(model)
    assert torch.equal(answers(model, name), grown)
    GrowthHistory.from_model(model).check(model)
