"""The predicted gain is the change of the loss of a network that really was grown, to leading order in the step."""

import copy

import pytest
import torch
from curvature_cases import EXACT, cross_entropy, transformer_case
from torch import nn

from hf_saddle.curvature import ACTIVATIONS, analyze_curvature


def split_(model, neuron, displacement):
    """Replace a neuron of the MLP by the halves θ ± displacement."""
    fc1, fc2 = model.mlp.fc1, model.mlp.fc2
    with torch.no_grad():
        rows = torch.cat([fc1.weight, fc1.bias[:, None]], 1)
        rows = torch.cat([rows, rows[neuron : neuron + 1] - displacement])
        rows[neuron] += displacement
        columns = torch.cat([fc2.weight, fc2.weight[:, neuron : neuron + 1]], 1)
        columns[:, [neuron, -1]] /= 2
        fc1.weight, fc1.bias = nn.Parameter(rows[:, :-1]), nn.Parameter(rows[:, -1])
        fc2.weight = nn.Parameter(columns)


def test_a_real_split_changes_the_loss_as_predicted():
    case = transformer_case()
    report = analyze_curvature(
        case.model, [case.batch], "width", loss=cross_entropy, linears=["mlp.fc1"], solver=EXACT
    )
    layer = report["mlp.fc1", "width"]
    neuron = int(layer.fit_eigenvalue.argmin())
    before, errors = case.loss(), []
    for factor in (1, 0.5, 0.25, 0.125):
        step = factor * layer.step[neuron]
        grown = copy.deepcopy(case)
        split_(grown.model, neuron, step * layer.direction[neuron])
        predicted = 0.5 * step**2 * layer.fit_eigenvalue[neuron]
        assert predicted < 0
        change = (grown.loss() - before).detach()
        errors.append(abs(float(change / predicted) - 1))
    assert errors[0] < 0.1
    # The next term is of fourth order: the error of the ratio falls four-fold when the step is halved.
    assert all(later < 0.3 * earlier for earlier, later in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize(
    "linear", ["attention.query", "attention.value", "attention.output", "mlp.fc1", "mlp.fc2", "head"]
)
def test_a_real_depth_unit_of_gain_one_changes_the_loss_as_predicted(linear):
    case = transformer_case()
    report = analyze_curvature(case.model, [case.batch], "depth", loss=cross_entropy, linears=[linear], solver=EXACT)
    layer = report[linear, "depth"]
    neuron = int((layer.step.square() * layer.fit_eigenvalue.abs()).argmax())
    sign = -layer.fit_eigenvalue[neuron].sign()
    module = case.model.get_submodule(linear)
    before, errors = case.loss(), []
    for factor in (1, 0.5, 0.25, 0.125):
        row = factor * layer.step[neuron] * layer.direction[neuron]

        def add_unit(module, args, output, row=row):
            # The unit ±φ(p·x̂); its linear part is taken back from the neuron's own row, as w may absorb it.
            response = nn.functional.pad(args[0], (0, 1), value=1.0) @ row
            unit = sign * (nn.functional.gelu(response) - 0.5 * response)
            return output + unit[..., None] * nn.functional.one_hot(torch.tensor(neuron), output.shape[-1])

        handle = module.register_forward_hook(add_unit)
        change = case.loss() - before
        handle.remove()
        bend = 2 / (2 * torch.pi) ** 0.5  # φ''(0) of GELU
        predicted = 0.5 * bend * (factor * layer.step[neuron]) ** 2 * layer.fit_eigenvalue[neuron].abs()
        errors.append(abs(float(-change.detach() / predicted) - 1))
    assert errors[-1] < 0.02
    assert all(later < 0.6 * earlier for earlier, later in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("activation", [nn.Mish(), nn.SiLU(), nn.GELU(approximate="tanh"), nn.Hardswish()], ids=str)
def test_units_of_any_activation_change_the_loss_as_predicted(activation):
    case = transformer_case()
    report = analyze_curvature(
        case.model,
        [case.batch],
        "depth",
        loss=cross_entropy,
        linears=["mlp.fc2"],
        solver=EXACT,
        unit_activation=activation,
    )
    layer = report["mlp.fc2", "depth"]
    neuron = int(layer.gain.argmax())
    # The gain is that of the held-out eigenvalue; the loss changes by the one of all samples.
    gain = layer.gain[neuron] * layer.fit_eigenvalue[neuron] / layer.eigenvalue[neuron]
    sign = -layer.fit_eigenvalue[neuron].sign()
    slope = torch.autograd.functional.jacobian(activation, torch.zeros((), dtype=torch.float64))
    before, errors = case.loss(), []
    for factor in (2**-4, 2**-5, 2**-6, 2**-7):
        row = factor * layer.step[neuron] * layer.direction[neuron]

        def add_unit(module, args, output, row=row):
            response = nn.functional.pad(args[0], (0, 1), value=1.0) @ row
            unit = sign * (activation(response) - slope * response)
            return output + unit[..., None] * nn.functional.one_hot(torch.tensor(neuron), output.shape[-1])

        handle = case.model.mlp.fc2.register_forward_hook(add_unit)
        change = case.loss() - before
        handle.remove()
        errors.append(abs(float(-change.detach() / (factor**2 * gain)) - 1))
    assert errors[-1] < 0.02
    assert all(later < 0.6 * earlier for earlier, later in zip(errors, errors[1:], strict=False))


def test_gains_follow_the_documented_formulas():
    case = transformer_case(samples=16)
    report = analyze_curvature(
        case.model,
        [case.batch],
        ("width", "depth", "grad_norm"),
        loss=cross_entropy,
        linears=["mlp.fc1"],
        step_size=0.03,
    )
    width, depth, first = (report["mlp.fc1", name] for name in ("width", "depth", "grad_norm"))
    torch.testing.assert_close(width.gain, (-0.5 * width.step**2 * width.eigenvalue).clamp_min(0))
    bend = ACTIVATIONS["gelu"].second(torch.zeros((), dtype=torch.float64))
    agreeing = depth.eigenvalue.sign() == depth.fit_eigenvalue.sign()
    expected = 0.5 * bend * depth.step**2 * depth.eigenvalue.abs() * agreeing
    torch.testing.assert_close(depth.gain, expected)
    torch.testing.assert_close(first.gain, first.step * first.eigenvalue)
    rows = torch.cat([case.model.mlp.fc1.weight, case.model.mlp.fc1.bias[:, None]], 1).norm(dim=1)
    assert (width.step <= 0.03 * rows + 1e-12).all()


def test_controls_equal_their_definitions():
    case = transformer_case()
    names = ("random", "grad_norm", "gradmax", "paper_score")
    report = analyze_curvature(case.model, [case.batch], names, loss=cross_entropy, linears=["mlp.fc2"])
    module = case.model.mlp.fc2
    weight, bias = torch.autograd.grad(case.loss(), [module.weight, module.bias])
    gradient = torch.cat([weight, bias[:, None]], 1)
    left, singular, right = torch.linalg.svd(gradient, full_matrices=False)
    close = torch.testing.assert_close
    close(report["mlp.fc2", "grad_norm"].eigenvalue, gradient.norm(dim=1))
    close(report["mlp.fc2", "grad_norm"].direction, gradient / gradient.norm(dim=1, keepdim=True))
    close(report["mlp.fc2", "gradmax"].eigenvalue, singular[0] * left[:, 0].abs())
    close((report["mlp.fc2", "gradmax"].direction @ right[0]).abs(), torch.ones(6).double())
    close(report["mlp.fc2", "paper_score"].eigenvalue, weight.sum(1).clamp(max=0))
    assert report["mlp.fc2", "random"].significant.all()
    assert len(report) == 4
