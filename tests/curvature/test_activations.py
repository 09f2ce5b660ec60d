"""φ' and φ'' of every activation of torch and transformers against autograd; what has no curvature says so."""

import pytest
import torch
from curvature_cases import EXACT, cross_entropy, transformer_case
from torch import nn
from torch.nn.modules import activation as torch_activations

from hf_saddle.curvature import ACTIVATIONS, activation_of, analyze_curvature, curvature_at_zero


ACT2FN = pytest.importorskip("transformers.activations").ACT2FN

# Names of transformers: those with curvature, and what is said of the others.
SMOOTH = {
    "gelu", "gelu_10", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "gelu_python_tanh",
    "gelu_accurate", "laplace", "mish", "quick_gelu", "relu2", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh",
}  # fmt: skip
WITHOUT = {
    "hardswish": "slope of Hardswish jumps at",
    "leaky_relu": "LeakyReLU is piecewise linear",
    "linear": "LinearActivation is piecewise linear",
    "prelu": "PReLU has parameters",
    "relu": "ReLU is piecewise linear",
    "relu6": "ReLU6 is piecewise linear",
    "xielu": "XIELUActivation has parameters",
}
AS_UNIT = SMOOTH - {"laplace", "relu2", "sigmoid", "sqrtsoftplus", "tanh"} | {"hardswish"}
# Older versions of transformers have fewer.
SMOOTH_HERE = sorted(SMOOTH & set(ACT2FN))

TORCH = {
    "ELU": nn.ELU(),
    "CELU": nn.CELU(0.7),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU(approximate="tanh"),
    "LogSigmoid": nn.LogSigmoid(),
    "Mish": nn.Mish(inplace=True),
    "Sigmoid": nn.Sigmoid(),
    "SiLU": nn.SiLU(inplace=True),
    "Softplus": nn.Softplus(beta=3.0),
    "Softsign": nn.Softsign(),
    "Tanh": nn.Tanh(),
    "Tanhshrink": nn.Tanhshrink(),
}
TORCH_WITHOUT = {
    "GLU": (nn.GLU(), "not element-wise"),
    "Hardshrink": (nn.Hardshrink(), "piecewise linear"),
    "Hardsigmoid": (nn.Hardsigmoid(), "cannot be differentiated twice"),
    "Hardswish": (nn.Hardswish(), "jumps at"),
    "Hardtanh": (nn.Hardtanh(), "piecewise linear"),
    "LeakyReLU": (nn.LeakyReLU(), "piecewise linear"),
    "LogSoftmax": (nn.LogSoftmax(-1), "not element-wise"),
    "PReLU": (nn.PReLU(), "parameters of its own"),
    "ReLU": (nn.ReLU(), "piecewise linear"),
    "ReLU6": (nn.ReLU6(), "piecewise linear"),
    "RReLU": (nn.RReLU().eval(), "piecewise linear"),
    "SELU": (nn.SELU(), "jumps at"),
    "Softmax": (nn.Softmax(-1), "not element-wise"),
    "Softmax of samples": (nn.Softmax(0), "not element-wise"),
    "Softmax2d": (nn.Softmax2d(), "not element-wise"),
    "Softmin": (nn.Softmin(-1), "not element-wise"),
    "Softshrink": (nn.Softshrink(), "piecewise linear"),
    "Threshold": (nn.Threshold(0.1, 2.0), "piecewise linear"),
}


def derivatives(function, z):
    """First and second derivative by `torch.func`, element by element."""
    first = torch.func.grad(lambda x: function(x.clone()))
    return torch.func.vmap(first)(z), torch.func.vmap(torch.func.grad(first))(z)


Z = torch.linspace(-6, 6, 100, dtype=torch.float64)


def assert_derivatives(module, tolerance=1e-12):
    first, second = derivatives(module, Z)
    formula = activation_of(module)
    torch.testing.assert_close(formula.first(Z), first, rtol=0, atol=tolerance)
    torch.testing.assert_close(formula.second(Z), second, rtol=0, atol=tolerance)
    for dtype, atol in ((torch.float32, 1e-4), (torch.float64, tolerance)):
        block = Z.to(dtype).reshape(4, 25)
        assert formula.second(block).dtype == dtype
        torch.testing.assert_close(formula.second(block).double(), second.reshape(4, 25), rtol=0, atol=atol)


def test_every_activation_of_transformers_is_listed():
    assert set(ACT2FN) <= SMOOTH | set(WITHOUT)


@pytest.mark.parametrize("name", SMOOTH_HERE)
def test_derivatives_of_transformers_activations_are_those_of_autograd(name):
    # FastGELU rounds √(2/π) to ten digits.
    assert_derivatives(ACT2FN[name], 1e-8 if name == "gelu_fast" else 1e-12)


@pytest.mark.parametrize("name", TORCH)
def test_derivatives_of_torch_activations_are_those_of_autograd(name):
    assert_derivatives(TORCH[name])


def test_every_activation_of_torch_is_listed():
    known = {type(module).__name__ for module in [*TORCH.values(), *(case[0] for case in TORCH_WITHOUT.values())]}
    assert set(torch_activations.__all__) == known | {"MultiheadAttention"}


@pytest.mark.parametrize(
    ("module", "reason"),
    [*((name, reason) for name, reason in WITHOUT.items() if name in ACT2FN), *TORCH_WITHOUT.values()],
    ids=str,
)
def test_activations_without_curvature_say_why(module, reason):
    with pytest.raises(ValueError, match=reason):
        activation_of(ACT2FN[module] if isinstance(module, str) else module)


def test_units_of_relu_use_a_named_softplus_surrogate():
    formula = ACTIVATIONS["relu"]
    assert "softplus surrogate" in formula.name
    _, second = derivatives(nn.Softplus(beta=4, threshold=100), Z)
    torch.testing.assert_close(formula.second(Z), second, rtol=0, atol=1e-12)
    for unit in ("relu", nn.ReLU(), ACT2FN["relu"]):
        assert curvature_at_zero(unit) == float(formula.second(torch.zeros((), dtype=torch.float64)))


class Swish(nn.Module):
    """A SiLU by another name."""

    def forward(self, x):
        return x * torch.sigmoid(x)


class Tanh(nn.Module):
    """Something else than its name says."""

    def forward(self, x):
        return torch.sin(x)


def test_activations_are_known_by_what_they_do_and_not_by_their_name():
    assert activation_of(Swish()) is ACTIVATIONS["silu"]
    assert_derivatives(Tanh())


def test_large_tensors_are_differentiated_in_slices():
    z = torch.randn(3, 2**20 - 5)
    torch.testing.assert_close(
        activation_of(nn.Sigmoid()).second(z)[:, -7:], activation_of(nn.Sigmoid()).second(z[:, -7:])
    )


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - {"relu"}))
def test_depth_units_need_a_second_derivative_at_zero_and_the_value_zero(name):
    if name in AS_UNIT:
        _, second = derivatives(ACT2FN[name], torch.zeros(1, dtype=torch.float64))
        assert curvature_at_zero(ACT2FN[name]) == pytest.approx(float(second), rel=1e-8)
    else:
        with pytest.raises(ValueError, match=r"at zero|parameters of its own"):
            curvature_at_zero(ACT2FN[name])


def test_gelu_has_the_largest_curvature_at_zero():
    assert curvature_at_zero("gelu") == pytest.approx(2 / (2 * torch.pi) ** 0.5)


@pytest.mark.parametrize("name", SMOOTH_HERE)
def test_an_analysis_finds_the_extreme_eigenvalues_of_a_split_by_autograd(name):
    """The splitting matrices of the whole MLP, as Hessians of the loss of networks with split neurons."""
    activation = ACT2FN[name]
    case = transformer_case(activation=activation)
    report = analyze_curvature(
        case.model, [case.batch], "width", loss=cross_entropy, linears=["mlp.fc1"], solver=EXACT
    )
    dense = torch.stack([split_hessian(case, activation, neuron) for neuron in range(7)])
    lowest = torch.linalg.eigvalsh(dense)[:, 0]
    # FastGELU rounds √(2/π) to ten digits.
    tolerance = 1e-8 if name == "gelu_fast" else 1e-10
    torch.testing.assert_close(report["mlp.fc1", "width"].fit_eigenvalue, lowest, rtol=tolerance, atol=tolerance)


def split_hessian(case, activation, neuron):
    """The Hessian of the loss in the distance of a neuron's halves θ ± δ, by autograd."""
    fc1, fc2 = case.model.mlp.fc1, case.model.mlp.fc2
    inputs = []
    handle = fc1.register_forward_hook(lambda module, args, output: inputs.append(args[0].detach()))
    case.loss()
    handle.remove()
    extended = nn.functional.pad(inputs[0], (0, 1), value=1.0)
    z = fc1(inputs[0])[..., neuron].detach()

    def loss(distance):
        step = extended @ distance
        extra = 0.5 * (activation(z + step) + activation(z - step)) - activation(z)
        added = extra[..., None] * fc2.weight[:, neuron]
        handle = fc2.register_forward_hook(lambda module, args, output: output + added)
        try:
            return case.loss()
        finally:
            handle.remove()

    return torch.autograd.functional.hessian(loss, torch.zeros(7, dtype=torch.float64))


class Several(nn.Module):
    """Several MLPs in a row, of which each has another activation."""

    def __init__(self, *activations):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 7), act, nn.Linear(7, 6)) for act in activations)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_layers_without_curvature_are_skipped_and_the_others_analysed():
    case = transformer_case()
    activations = {"PReLU": nn.PReLU(), "LeakyReLU": nn.LeakyReLU(), "Softmax": nn.Softmax(-1), "": nn.Mish()}
    case.model.mlp = Several(*activations.values()).double()
    report = analyze_curvature(case.model, [case.batch], ("width", "depth"), loss=cross_entropy)
    assert [layer.linear for layer in report if layer.criterion == "width"] == ["mlp.layers.3.0"]
    for index, name in enumerate(list(activations)[:3]):
        assert f"read by an activation without curvature: {name}" in report.skipped[f"mlp.layers.{index}.0"]
        assert report.get(f"mlp.layers.{index}.0", "depth") is not None


def test_a_clipped_gelu_is_analysed_where_it_is_not_clipped():
    case = transformer_case(activation=ACT2FN["gelu_10"])
    twin = transformer_case(activation=ACT2FN["gelu"])
    reports = [analyze_curvature(c.model, [c.batch], "width", loss=cross_entropy, solver=EXACT) for c in (case, twin)]
    torch.testing.assert_close(reports[0]["mlp.fc1", "width"].eigenvalue, reports[1]["mlp.fc1", "width"].eigenvalue)
    case.model.mlp.fc1.bias.data[2] = 30.0
    with pytest.raises(ValueError, match="slope of ClippedGELUActivation jumps at ±10, which is reached"):
        analyze_curvature(case.model, [case.batch], "width", loss=cross_entropy)


def test_what_hands_on_its_input_is_no_activation():
    case = transformer_case(activation=nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.GELU()))
    plain = transformer_case()
    reports = [analyze_curvature(c.model, [c.batch], "width", loss=cross_entropy, solver=EXACT) for c in (case, plain)]
    torch.testing.assert_close(reports[0]["mlp.fc1", "width"].eigenvalue, reports[1]["mlp.fc1", "width"].eigenvalue)
    case.model.mlp.activation[2] = nn.Identity()
    with pytest.raises(ValueError, match="no activation module reads its output"):
        analyze_curvature(case.model, [case.batch], "width", loss=cross_entropy)
