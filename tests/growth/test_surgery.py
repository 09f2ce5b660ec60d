"""What an operator does to a model: function, shapes, config, order of names, errors."""

import copy

import pytest
import torch
import torch.distributed as dist
from growth_cases import LINEAR_NAMES, logits, path_of, plan_for, tiny_model, wake_
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_saddle.growth import GrowthHistory, GrowthPlan, LayerGrowth, count_macs, count_parameters, grow_


EXACT = ("zero_gain", "residual_pair", "opposed_pair")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operator", EXACT)
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_exact_operators_keep_the_function_of_every_linear_nested_twice(kind, operator, dtype, training):
    model = tiny_model(kind).to(dtype).train(training)
    for depth in range(3):
        before = logits(model)
        grow_(model, plan_for(model, operator, [2, 0, 1], LINEAR_NAMES, depth=depth))
        assert (logits(model) - before).abs().max() == 0.0
        wake_(model)
        assert (logits(model) - before).abs().max() > 0.0  # the new units do answer
    assert model.shapes().skip_sizes.keys() == {f"layers.0.{name}" for name in LINEAR_NAMES}
    assert all(len(sizes) == 3 for sizes in model.shapes().skip_sizes.values())


@pytest.mark.parametrize("operator", EXACT)
def test_exact_operators_keep_the_function_where_units_already_answer(operator):
    # Exact but for rounding: a longer branch is a matrix product of another shape, summed in another order by BLAS.
    model = tiny_model().double()
    for _ in range(2):
        grow_(model, plan_for(model, operator, [0, 1, 2], LINEAR_NAMES))
        wake_(model)
    before = logits(model)
    grow_(model, plan_for(model, operator, [2, 5], LINEAR_NAMES))
    assert (logits(model) - before).abs().max() < 1e-13


def test_gradmax_keeps_the_function_and_has_a_gradient_at_once():
    model = tiny_model()
    before = logits(model)
    grow_(model, plan_for(model, "gradmax", [0, 1]))
    assert (logits(model) - before).abs().max() < 1e-6  # a longer sum, zeros at its end
    fc2 = model.get_submodule(path_of(model, "mlp.fc2"))
    assert torch.equal(fc2.weight[:, -2:], torch.zeros_like(fc2.weight[:, -2:]))


@pytest.mark.parametrize("operator", ["split", "net2net"])
def test_a_copy_without_a_step_keeps_the_function(operator):
    model = tiny_model()
    grow_(model, plan_for(model, "zero_gain", [2, 3, 3 + 1], LINEAR_NAMES))
    wake_(model)
    before = logits(model)
    event = grow_(model, plan_for(model, operator, [3, 9], steps=0.0))
    assert (logits(model) - before).abs().max() < 2e-6
    branch = model.get_submodule(path_of(model, "mlp.fc1")).skip
    assert branch.target.tolist() == [2, 3, 4, 24]  # the unit of neuron 3 was copied for its copy
    assert event.parameters_after - event.parameters_before == 2 * (17 + 16 + 3) + 18


def test_a_split_branch_unit_shares_its_gain():
    model = tiny_model()
    grow_(model, plan_for(model, "zero_gain", [4, 6], gains=0.8))
    before = logits(model)
    grow_(model, plan_for(model, "split", [1], depth=1, steps=0.0))
    branch = model.get_submodule(path_of(model, "mlp.fc1")).skip
    assert branch.target.tolist() == [4, 6, 6]
    assert torch.allclose(branch.gain, torch.tensor([0.8, 0.4, 0.4]))
    assert (logits(model) - before).abs().max() < 2e-6


def test_split_moves_two_copies_apart():
    model = tiny_model()
    fc1, fc2 = (model.get_submodule(path_of(model, name)) for name in ("mlp.fc1", "mlp.fc2"))
    row, bias, column = fc1.weight[5].clone(), fc1.bias[5].clone(), fc2.weight[:, 5].clone()
    plan = plan_for(model, "split", [5], steps=0.3)
    direction = plan.growths[0].directions[0]
    grow_(model, plan)
    assert torch.allclose(fc1.weight[[5, 24]], torch.stack([row + 0.3 * direction[:-1], row - 0.3 * direction[:-1]]))
    assert torch.allclose(fc1.bias[[5, 24]], torch.stack([bias + 0.3 * direction[-1], bias - 0.3 * direction[-1]]))
    assert torch.equal(fc2.weight[:, 5], column / 2) and torch.equal(fc2.weight[:, 24], column / 2)


@pytest.mark.parametrize("operator", ["zero_gain", "residual_pair", "opposed_pair", "split", "net2net", "gradmax"])
def test_a_grown_model_is_a_fresh_model_of_its_config(operator):
    model = tiny_model()
    hooks = []
    fc1 = model.get_submodule(path_of(model, "mlp.fc1"))
    fc1.register_forward_hook(lambda *_: hooks.append(1))
    state = torch.get_rng_state()
    for neurons in ([0, 4], [1, 4, 24]):
        deep = operator in EXACT
        grow_(model, plan_for(model, operator, neurons[: 2 if deep else 3], LINEAR_NAMES if deep else ["mlp.fc1"]))
    assert torch.equal(state, torch.get_rng_state())
    fresh = type(model)(copy.deepcopy(model.config))
    assert [(n, p.shape) for n, p in fresh.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]
    assert list(fresh.state_dict()) == list(model.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh.eval()), logits(model.eval()))
    assert hooks  # the modules are the same objects
    for site, fresh_site in zip(model.growable_linears(), fresh.growable_linears(), strict=True):
        path, module, other = site.path, site.module, fresh_site.module
        assert (module.in_features, module.out_features) == (other.in_features, other.out_features), path
        if module.skip is not None:
            assert module.skip.shared_targets == (module.skip.target.unique().numel() < len(module.skip.target))
            assert module.skip.neurons == other.skip.neurons


def test_the_event_says_what_happened(tmp_path):
    model = tiny_model()
    parameters, macs = count_parameters(model), count_macs(model)
    fc1 = model.get_submodule(path_of(model, "mlp.fc1"))
    old = fc1.weight
    event = grow_(model, plan_for(model, "split", [1, 2, 3]), step=7, epoch=0.5, loss_before=1.25)
    assert event.replaced[old] is fc1.weight and set(event.replaced.values()) <= set(model.parameters())
    assert (event.parameters_before, event.parameters_after) == (parameters, count_parameters(model))
    assert (event.macs_before, event.macs_after) == (macs, count_macs(model))
    assert (event.step, event.epoch, event.loss_before, event.neurons) == (7, 0.5, 1.25, 3)
    assert event.shapes == model.shapes() and event.operators == ["split"]
    again = grow_(model, plan_for(model, "zero_gain", [1]))
    branch = f"{path_of(model, 'mlp.fc1')}.skip"
    assert set(again.added) == {f"{branch}.{name}" for name in ("gain", "linear.weight", "linear.bias")}
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert GrowthHistory.from_model(loaded).to_dict() == GrowthHistory.from_model(model).to_dict()
    assert torch.equal(logits(loaded), logits(model.eval()))


def test_an_empty_plan_is_recorded_and_changes_nothing():
    model = tiny_model()
    parameters = list(model.parameters())
    event = grow_(model, GrowthPlan(criterion="depth"))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert event.parameters_after == event.parameters_before and len(GrowthHistory.from_model(model)) == 1


def test_a_copy_of_the_weights_follows_by_the_same_plan():
    model = tiny_model()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    average.update_parameters(model)
    plan = plan_for(model, "split", [1, 5])
    grow_(model, plan)
    grow_(average.module, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in average.module.parameters()]
    average.update_parameters(model)
    for old, new in zip(before, average.module.parameters(), strict=True):
        assert torch.allclose(new, old + 0.1, atol=1e-5)


ERRORS = {
    "neuron": (lambda m: plan_for(m, "split", [24]), r"must be in \[0, 24\)"),
    "negative": (lambda m: plan_for(m, "split", [-1]), r"must be in \[0, 24\)"),
    "duplicate": (lambda m: plan_for(m, "split", [1, 1]), "duplicates"),
    "twice": (
        lambda m: GrowthPlan(plan_for(m, "split", [1, 2]).growths + plan_for(m, "zero_gain", [2]).growths),
        "twice",
    ),
    "nan": (lambda m: plan_for(m, "split", [1], directions=torch.full((1, 17), torch.nan)), "not finite"),
    "columns": (lambda m: plan_for(m, "split", [1], directions=torch.ones(1, 16)), "17 columns"),
    "operator": (lambda m: plan_for(m, "grow", [1]), "`operator` must be one of"),
    "linear": (lambda m: plan_for(m, "split", [1], ["mlp.fc3"]), "no growable linear"),
    "attention": (lambda m: plan_for(m, "split", [1], ["attention.v_proj"]), "operator of depth"),
    "kinds": (
        lambda m: GrowthPlan(plan_for(m, "residual_pair", [1]).growths + plan_for(m, "zero_gain", [2]).growths),
        "keeps one kind",
    ),
    "overflow": (lambda m: plan_for(m, "split", [1], steps=3e38, directions=torch.full((1, 17), 3.0)), "not finite"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_bad_plan_raises_and_changes_nothing(case):
    model = tiny_model()
    make, message = ERRORS[case]
    state = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    config = model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        grow_(model, make(model))
    now = model.state_dict(keep_vars=True)
    assert all(now[name] is tensor and torch.equal(tensor, value) for name, (tensor, value) in state.items())
    assert model.config.to_dict() == config and model.growth_history is None


def test_a_model_keeps_one_kind_of_units():
    model = tiny_model()
    grow_(model, plan_for(model, "residual_pair", [1]))
    with pytest.raises(ValueError, match="keeps one kind"):
        grow_(model, plan_for(model, "zero_gain", [1], ["mlp.fc2"]))
    with pytest.raises(ValueError, match="widens hidden neurons"):
        grow_(model, plan_for(model, "split", [0], depth=1))


def test_a_gradient_is_not_lost():
    model = tiny_model()
    logits_with_gradient = model(**{"pixel_values": torch.randn(2, 3, 8, 8)}).logits
    logits_with_gradient.sum().backward()
    with pytest.raises(ValueError, match="holds a gradient"):
        grow_(model, plan_for(model, "split", [1]))


def test_sharded_models_do_not_grow_in_place():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = tiny_model()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match="is sharded"):
            grow_(model, GrowthPlan())
    finally:
        dist.destroy_process_group()


def test_other_models_do_not_grow():
    with pytest.raises(ValueError, match="Only Saddle models grow"):
        grow_(torch.nn.Linear(2, 2), GrowthPlan())


def test_residual_pairs_need_an_activation_that_is_zero_at_zero():
    model = tiny_model(hidden_act="sigmoid")
    with pytest.raises(ValueError, match="Use `zero_gain`"):
        grow_(model, plan_for(model, "residual_pair", [1]))


def test_directions_by_hand_are_reproducible():
    model = tiny_model()
    first, second = (plan_for(model, "split", [1, 2], seed=3).digest() for _ in range(2))
    assert first == second != plan_for(model, "split", [1, 2], seed=4).digest()
    assert LayerGrowth.by_hand(model, path_of(model, "mlp.fc1"), "opposed_pair", [1]).gains.tolist() == [1.0]
