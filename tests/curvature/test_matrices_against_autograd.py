"""S and D are the Hessians of the loss in the parameters of a split and of a new depth unit."""

import pytest
import torch
from curvature_cases import EXACT, captured, cross_entropy, transformer_case
from torch import nn

from hf_saddle.curvature import analyze_curvature


LINEARS = ["attention.query", "attention.value", "attention.output", "mlp.fc1", "mlp.fc2", "head"]


def hessian_of_dummy(case, linear, neuron, perturb):
    """The autograd Hessian of the loss in a dummy vector `p`; `perturb(p · x̂, z)` is added to the neuron's output."""
    module = case.model.get_submodule(linear)

    def loss(dummy):
        def hook(module, args, output):
            extended = nn.functional.pad(args[0], (0, 1), value=1.0)
            one_hot = nn.functional.one_hot(torch.tensor(neuron), output.shape[-1]).to(output.dtype)
            return output + perturb(extended @ dummy, output[..., neuron])[..., None] * one_hot

        handle = module.register_forward_hook(hook)
        try:
            return case.loss()
        finally:
            handle.remove()

    dummy = torch.zeros(module.in_features + 1, dtype=torch.float64)
    return torch.autograd.functional.hessian(loss, dummy)


@pytest.mark.parametrize("linear", LINEARS)
def test_depth_matrix_is_the_hessian_of_a_quadratic_unit(linear):
    case = transformer_case()
    dense = captured(case, linear, "depth").dense()
    assert dense.abs().max() > 1e-3
    for neuron in (0, dense.shape[0] - 1):
        expected = hessian_of_dummy(case, linear, neuron, lambda s, z: 0.5 * s * s)
        torch.testing.assert_close(dense[neuron], expected, rtol=1e-10, atol=1e-12)


ACTIVATIONS = [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Tanh()]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_width_matrix_is_the_hessian_of_a_symmetric_split(activation):
    case = transformer_case(activation=activation)
    dense = captured(case, "mlp.fc1", "width").dense()
    assert dense.abs().max() > 1e-3
    weight, hidden = case.model.mlp.fc2.weight, {}
    for neuron in range(3):

        def split(s, z, neuron=neuron):
            # What the halves θ ± δ add to the neuron's own output; fc2 sees it through the neuron's column.
            hidden["extra"] = 0.5 * (activation(z + s) + activation(z - s)) - activation(z)
            return torch.zeros_like(z)

        def add_extra(module, args, output, neuron=neuron):
            return output + hidden["extra"][..., None] * weight[:, neuron]

        handle = case.model.mlp.fc2.register_forward_hook(add_extra)
        expected = hessian_of_dummy(case, "mlp.fc1", neuron, split)
        handle.remove()
        torch.testing.assert_close(dense[neuron], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("linear", "kind"), [("mlp.fc1", "width"), *((name, "depth") for name in LINEARS)])
def test_products_and_forms_equal_those_of_the_dense_matrices(linear, kind):
    case = transformer_case()
    operator = captured(case, linear, kind)
    dense = operator.dense()
    vectors = torch.randn(dense.shape[1], dense.shape[0], dtype=torch.float64)
    image = torch.arange(8).repeat_interleave(len(operator.segments[0][0]) // 8)
    product, forms = operator.product_and_forms(vectors, image, 8)
    torch.testing.assert_close(product, torch.einsum("nde,en->dn", dense, vectors))
    torch.testing.assert_close(operator(vectors), product)
    torch.testing.assert_close(forms.sum(0) / 8, torch.einsum("dn,nde,en->n", vectors, dense, vectors))


@pytest.mark.parametrize(("linear", "criterion"), [("mlp.fc1", "width"), *((name, "depth") for name in LINEARS)])
def test_the_analysis_finds_the_extreme_eigenvalue_of_every_neuron(linear, criterion):
    case = transformer_case()
    report = analyze_curvature(case.model, [case.batch], criterion, loss=cross_entropy, linears=[linear], solver=EXACT)
    values, vectors = torch.linalg.eigh(captured(case, linear, criterion).dense())
    upper = values[:, -1] > -values[:, 0]
    layer = report[linear, criterion]
    # The end of a depth unit is chosen by the folds; where both ends are about equal it may differ from the oracle's.
    clear = (values[:, -1] + values[:, 0]).abs() > 0.3 * values.abs().amax(1)
    clear |= torch.tensor(criterion == "width")
    index = torch.where(upper & (criterion == "depth"), values.shape[1] - 1, 0)
    rows = torch.arange(len(values))
    expected, direction = values[rows, index], vectors[rows, :, index]
    assert clear.sum() >= 1
    torch.testing.assert_close(layer.fit_eigenvalue[clear], expected[clear], rtol=1e-8, atol=1e-12)
    overlap = (layer.direction * direction).sum(1).abs()
    assert (overlap[clear] > 1 - 1e-6).all()
    assert (layer.residual < 1e-6 * values.abs().amax()).all()


@pytest.mark.parametrize("criterion", ["width", "depth"])
@pytest.mark.parametrize("whiten", [False, True])
def test_directions_have_a_sign_that_start_vectors_do_not_choose(criterion, whiten):
    case = transformer_case()
    first, second = (
        analyze_curvature(
            case.model,
            [case.batch],
            criterion,
            loss=cross_entropy,
            linears=["mlp.fc1"],
            solver=EXACT,
            seed=seed,
            whiten=whiten,
        )["mlp.fc1", criterion].direction
        for seed in (0, 1)
    )
    overlap = (first * second).sum(1)
    same = overlap.abs() > 1 - 1e-4
    assert same.sum() >= 4 and (overlap[same] > 0).all()


def test_branches_of_growable_linears_are_analysed_as_layers():
    growable = pytest.importorskip("hf_saddle.models.growable")
    case = transformer_case()
    fc1 = growable.GrowableLinear(6, 7)
    fc1.skip = growable.SkipBranch(fc1, [4, 2], "gain", "gelu")
    fc1 = fc1.double()
    for parameter in fc1.parameters():
        nn.init.normal_(parameter, std=0.5)
    case.model.mlp.fc1 = fc1
    for linear in ("mlp.fc1", "mlp.fc1.skip.linear", "mlp.fc1.skip.linear.skip.linear"):
        dense = captured(case, linear, "depth").dense()
        expected = hessian_of_dummy(case, linear, 1, lambda s, z: 0.5 * s * s)
        torch.testing.assert_close(dense[1], expected, rtol=1e-10, atol=1e-12)
