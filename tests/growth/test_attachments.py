"""What hangs on a parameter goes on with the one that takes its place, or is refused before anything happens."""

import pytest
import torch
from growth_cases import LINEAR_NAMES, path_of, plan_for, tiny_model, train
from torch import nn
from torch.nn.utils import prune

from hf_saddle.growth import grow_, merge_pairs_, prepare_growth


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def grown_model(operator="zero_gain"):
    model = tiny_model()
    grow_(model, plan_for(model, operator, [0, 2], LINEAR_NAMES))
    return model


# ------------------------------------------------------------------------------------------------------ requires_grad
TRAINED = {
    "biases": lambda name: name.endswith("bias"),
    "weights": lambda name: not name.endswith("bias"),
    "units": lambda name: ".skip." in name,
    "gains and the head": lambda name: name.endswith("gain") or name.startswith("classifier"),
    "all but branches": lambda name: ".skip." not in name,
    "the second layer": lambda name: "layers.1." in name,
}


@pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED)
def test_every_parameter_is_trained_as_it_was(trained):
    model = grown_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    before = flags(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    train(model, optimizer, 1)
    for operator, linears, depth in (
        ("split", ["mlp.fc1"], 0),
        ("zero_gain", LINEAR_NAMES, 0),  # more units in branches that exist
        ("split", LINEAR_NAMES, 1),
    ):
        grow_(model, plan_for(model, operator, [0, 1], linears, depth), optimizer)
        assert flags(model) == before
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        assert held == {parameter for parameter in model.parameters() if parameter.requires_grad}
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    train(model, optimizer, 2)
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())


def test_new_branches_are_trained_as_the_neurons_they_feed():
    model = tiny_model()
    path = path_of(model, "mlp.fc1")
    model.get_submodule(path).bias.requires_grad_(False)
    grow_(model, plan_for(model, "zero_gain", [0, 2]))
    branch = model.get_submodule(path).skip
    assert branch.linear.weight.requires_grad and branch.gain.requires_grad and not branch.linear.bias.requires_grad


@pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED)
def test_loading_other_shapes_keeps_what_is_trained(trained):
    """Smaller and larger: what `load_best_model_at_end` and resuming do."""
    model, larger = grown_model(), grown_model()
    grow_(larger, plan_for(larger, "split", [1, 5]))
    grow_(larger, plan_for(larger, "zero_gain", [4, 5], LINEAR_NAMES))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    before, smaller = flags(model), {name: value.clone() for name, value in model.state_dict().items()}
    for weights in (larger.state_dict(), smaller):
        model.load_state_dict(weights)
        assert flags(model) == before


def test_merged_pairs_are_trained_as_both_rows_were():
    model = grown_model("residual_pair")
    linear = model.get_submodule(path_of(model, "mlp.fc1", depth=1))
    linear.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="train both, or freeze both"):
        merge_pairs_(model)
    linear.twin_weight.requires_grad_(False)
    merge_pairs_(model)
    merged = model.get_submodule(path_of(model, "mlp.fc1", depth=1))
    assert not merged.weight.requires_grad and merged.bias.requires_grad


# --------------------------------------------------------------------------------------------------------- attributes
def test_attributes_go_on():
    model = tiny_model()
    linear = model.get_submodule(path_of(model, "mlp.fc1"))
    linear.weight.learning_rate, linear.bias.learning_rate = 0.5, 2.0
    grow_(model, plan_for(model, "split", [1]))
    grow_(model, plan_for(model, "zero_gain", [1]))
    assert linear.weight.learning_rate == 0.5 and linear.bias.learning_rate == 2.0
    # New units are trained as the neurons they feed.
    assert linear.skip.linear.weight.learning_rate == 0.5 == linear.skip.gain.learning_rate
    assert linear.skip.linear.bias.learning_rate == 2.0
    model.load_state_dict(tiny_model().state_dict())
    linear = model.get_submodule(path_of(model, "mlp.fc1"))
    assert linear.weight.learning_rate == 0.5 and linear.out_features == 24


# ----------------------------------------------------------------------------------------------------------- refusals
def tie(linear, model):
    other = model.get_submodule(path_of(model, "mlp.fc1", layer=1))
    other.weight = linear.weight


def main_grad(linear, model):
    linear.weight.main_grad = torch.zeros_like(linear.weight)


REFUSED = {
    "gradient hook": (lambda linear, model: linear.weight.register_hook(torch.sign), "fc1.weight has hooks"),
    "optimizer in the backward pass": (
        lambda linear, model: linear.bias.register_post_accumulate_grad_hook(lambda parameter: None),
        "fc1.bias has hooks",
    ),
    "hook on a gain": (lambda linear, model: linear.skip.gain.register_hook(torch.sign), "fc1.skip.gain has hooks"),
    "tensor": (main_grad, "fc1.weight has the attribute `main_grad`"),
    "shared": (tie, "layers.0.mlp.fc1.weight and .*layers.1.mlp.fc1.weight are one parameter"),
    "pruned": (lambda linear, model: prune.l1_unstructured(linear, "weight", 0.5), "fc1 has weight, weight_mask"),
    "pruned gains": (lambda linear, model: prune.l1_unstructured(linear.skip, "gain", 0.5), "fc1.skip has gain"),
    "weight_norm": (lambda linear, model: nn.utils.weight_norm(linear), "fc1 has weight, weight_g"),
    "spectral_norm": (lambda linear, model: nn.utils.spectral_norm(linear), "fc1 has weight, weight_orig"),
    "parametrisation": (
        lambda linear, model: nn.utils.parametrizations.orthogonal(linear),
        "fc1 has parametrizations, weight",
    ),
    "branch of the next linear": (
        lambda linear, model: model.get_submodule(path_of(model, "mlp.fc2")).weight.register_hook(torch.sign),
        "fc2.weight has hooks",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_follow_is_refused_by_name(case):
    hang, message = REFUSED[case]
    model = grown_model()
    plan = plan_for(model, "split", [1])
    hang(model.get_submodule(path_of(model, "mlp.fc1")), model)
    parameters, history = list(model.parameters()), model.growth_history
    with pytest.raises(ValueError, match=message):
        prepare_growth(model, plan)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.growth_history is history


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("case", ["gradient hook", "tensor", "pruned", "weight_norm", "parametrisation"])
def test_what_cannot_follow_is_refused_when_a_checkpoint_has_other_shapes(case):
    hang, message = REFUSED[case]
    model, larger = grown_model(), grown_model()
    grow_(larger, plan_for(larger, "split", [1]))
    hang(model.get_submodule(path_of(model, "mlp.fc1")), model)
    parameters = list(model.parameters())
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(larger.state_dict())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.shapes() == grown_model().shapes() and model.config.per_layer_config is not None


def test_hooks_elsewhere_stay_and_removed_ones_are_forgotten():
    model = tiny_model()
    seen = []
    model.classifier.weight.register_hook(seen.append)
    model.get_submodule(path_of(model, "mlp.fc1")).weight.register_hook(torch.sign).remove()
    prune.l1_unstructured(model.get_submodule(path_of(model, "mlp.fc2")), "weight", 0.5)
    prune.remove(model.get_submodule(path_of(model, "mlp.fc2")), "weight")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    grow_(model, plan_for(model, "split", [1]), optimizer)
    train(model, optimizer, 1)
    assert len(seen) == 1
