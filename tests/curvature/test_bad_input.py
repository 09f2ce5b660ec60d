"""Bad input ends in one clear error or a documented skip, never in a NaN."""

import pytest
import torch
from curvature_cases import EXACT, MLP, cross_entropy, transformer_case
from torch import nn

from hf_saddle.curvature import SolverOptions, analyze_curvature, check_null_model


def analyze(case, batches=None, **kwargs):
    return analyze_curvature(case.model, [case.batch] if batches is None else batches, loss=cross_entropy, **kwargs)


def take(case, count):
    return {name: value[:count] for name, value in case.batch.items()}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_images_are_refused(count):
    case = transformer_case()
    with pytest.raises(ValueError, match="sample"):
        analyze(case, [take(case, count)])


def test_an_empty_probe_is_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        analyze(transformer_case(), [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_in_the_data_are_refused(value):
    case = transformer_case()
    case.batch["x"][2, 1, 0] = value
    with pytest.raises(ValueError, match=r"loss of a probe batch is"):
        analyze(case)


@pytest.mark.parametrize("criterion", ["width", "depth", "grad_norm"])
def test_nan_in_a_gradient_behind_a_finite_loss_is_refused(criterion):
    case = transformer_case()

    def loss(model, batch):
        logits = model(batch["x"])
        return (
            nn.functional.cross_entropy(logits, batch["y"]) + (logits.sum() * 0).abs().sqrt()
        )  # slope infinite at zero

    with pytest.raises(ValueError, match="NaN or infinity"):
        analyze_curvature(case.model, [case.batch], criterion, loss=loss, linears=["mlp.fc1"])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: model(batch["x"]), "not a scalar"),
        (lambda model, batch: None, "not a scalar"),
        (lambda model, batch: cross_entropy(model, batch).detach(), "does not depend"),
    ],
    ids=["logits", "none", "detached"],
)
def test_a_loss_that_is_none_is_refused(loss, message):
    case = transformer_case()
    with pytest.raises(ValueError, match=message):
        analyze_curvature(case.model, [case.batch], loss=loss)


def test_a_model_that_is_frozen_altogether_is_refused():
    case = transformer_case()
    case.model.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        analyze(case)


class Unused(MLP):
    """Has a linear layer that the loss does not depend on, and one that is not called."""

    def __init__(self):
        super().__init__(6, 7, nn.GELU())
        self.detached, self.idle = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return super().forward(x) + self.detached(x).detach()


def test_layers_without_gradient_are_skipped():
    case = transformer_case()
    case.model.mlp = Unused().double()
    report = analyze(case)
    assert "does not depend" in report.skipped["mlp.detached"]
    assert "does not depend" in report.skipped["mlp.idle"]
    assert report.get("mlp.fc1", "depth") is not None


def test_layers_with_zero_gradient_are_skipped():
    case = transformer_case()
    case.model.mlp.fc2.weight.data.zero_()
    report = analyze(case)
    assert "gradient is zero" in report.skipped["mlp.fc1"]
    assert report.get("mlp.fc2", "depth") is not None


def test_layers_with_constant_input_are_skipped():
    case = transformer_case()
    case.model.mlp.fc1.weight.data.zero_()
    report = analyze(case, criterion=("width", "depth"))
    assert "same for all tokens" in report.skipped["mlp.fc2"]


def test_tied_weights_are_skipped():
    case = transformer_case()
    case.model.attention.key.weight = case.model.attention.query.weight
    report = analyze(case)
    for name in ("attention.key", "attention.query"):
        assert "tied" in report.skipped[name]
    assert report.get("attention.value", "depth") is not None


class Positions(MLP):
    """Has a linear layer whose input has no sample dimension."""

    def __init__(self):
        super().__init__(6, 7, nn.GELU())
        self.position = nn.Linear(3, 6)

    def forward(self, x):
        return super().forward(x) + self.position(torch.ones(5, 3, dtype=x.dtype))


def test_layers_whose_input_is_not_grouped_by_sample_are_skipped():
    case = transformer_case()
    case.model.mlp = Positions().double()
    assert "not grouped" in analyze(case).skipped["mlp.position"]


def test_a_dead_neuron_yields_zero_gain_and_no_nan():
    case = transformer_case()
    case.model.mlp.fc2.weight.data[:, 3] = 0
    case.model.mlp.fc1.weight.data[4] = 0
    case.model.mlp.fc1.bias.data[4] = 0
    layers = analyze(case, criterion=("width", "depth"), linears=["mlp.fc1"])
    for layer in layers:
        assert float(layer.gain[3]) == 0
        assert not bool(layer.significant[3])
        assert float(layer.step[4]) == 0
        for name in ("eigenvalue", "standard_error", "residual", "direction", "step", "gain", "fit_eigenvalue"):
            assert torch.isfinite(getattr(layer, name)).all()


def test_an_unsupported_activation_is_refused():
    case = transformer_case(activation=nn.LeakyReLU())
    with pytest.raises(ValueError, match="mlp.fc1: width: .* LeakyReLU is piecewise linear"):
        analyze(case, criterion="width")
    assert analyze(case, criterion="depth").get("mlp.fc1", "depth") is not None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"criterion": "curvature"}, "criterion"),
        ({"criterion": ()}, "criterion"),
        ({"criterion": ("depth", "depth")}, "criterion"),
        ({"linears": ["mlp.fc9"]}, "mlp.fc9"),
        ({"linears": ["mlp"]}, "mlp"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"significance": -1.0}, "significance"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"unit_activation": "gelu_of_nobody"}, "unit_activation"),
        ({"unit_activation": nn.Sigmoid()}, "at zero"),
        ({"unit_activation": nn.PReLU()}, "parameters of its own"),
        ({"unit_activation": "tanh"}, "no curvature at zero"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        analyze(transformer_case(), **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"screen_tokens": 0},
        {"shortlist": 1.5},
        {"screen_steps": 0},
        {"tolerance": float("nan")},
        {"shortlist_floor": 0},
        {"leaders": 0},
    ],
)
def test_solver_options_out_of_range_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        SolverOptions(**kwargs)


def test_the_null_model_is_for_curvature_only():
    case = transformer_case()
    with pytest.raises(ValueError, match="null model"):
        check_null_model(case.model, [case.batch], "grad_norm", loss=cross_entropy)


def test_reports_export_and_print():
    case = transformer_case()
    report = analyze(case, criterion=("width", "depth"), solver=EXACT)
    exported = report.to_dict()
    assert {"linear", "criterion", "eigenvalue", "significant", "cost_parameters"} <= exported["layers"][0].keys()
    assert exported["layers"][0]["eigenvalue"] == report.layers[0].eigenvalue.tolist()
    assert "mlp.fc1" in str(report)
    assert "skipped mlp.fc2: width" in report.summary()
    with pytest.raises(KeyError, match="no activation"):
        report["mlp.fc2", "width"]
    assert report.get("nothing", "width") is None
