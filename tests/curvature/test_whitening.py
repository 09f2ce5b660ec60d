"""Whitened directions solve `S v = λ M v`, do not depend on the units of the inputs, and predict what happens."""

import copy

import pytest
import torch
from curvature_cases import EXACT, captured, cross_entropy, transformer_case
from torch import nn

import hf_saddle.curvature.capture.moments as moments_module
import hf_saddle.curvature.solving.solve as solve_module
from hf_saddle.curvature import CurvatureOperator, SolverOptions, analyze_curvature, check_null_model
from hf_saddle.curvature.capture.padding import rows_for_scale
from hf_saddle.curvature.ranks import Ranks
from hf_saddle.curvature.solving.whitening import directions, products, whitened_inputs


LINEARS = [("mlp.fc1", "width"), ("mlp.fc1", "depth"), ("mlp.fc2", "depth")]


def analyze(case, linear, criterion, **kwargs):
    arguments = {"loss": cross_entropy, "solver": EXACT, "linears": [linear], "whiten": True} | kwargs
    return analyze_curvature(case.model, [case.batch], criterion, **arguments)[linear, criterion]


def inputs_of(case, linear):
    """`x̂` of all tokens, by a hook."""
    found = []
    module = case.model.get_submodule(linear)
    handle = module.register_forward_hook(lambda module, args, output: found.append(args[0].detach().flatten(0, 1)))
    case.loss()
    handle.remove()
    return nn.functional.pad(found[0], (0, 1), value=1.0)


def with_mean(samples=24):
    """Inputs with a large mean and components of very different size, as behind a trained norm."""
    case = transformer_case(samples=samples)
    with torch.no_grad():
        case.model.norm.weight.copy_(torch.tensor([0.1, 0.3, 1.0, 1.0, 2.0, 4.0]))
        case.model.norm.bias.fill_(2.0)
    return case


@pytest.mark.parametrize(("linear", "criterion"), LINEARS)
def test_directions_are_generalised_eigenvectors(linear, criterion, monkeypatch):
    """Against the eigenvalues of `M⁻¹ S`, which is not symmetric and is solved by another routine."""
    monkeypatch.setattr(moments_module, "_RIDGE", 0.0)
    case = with_mean()
    layer = analyze(case, linear, criterion)
    dense, inputs = captured(case, linear, criterion).dense(), inputs_of(case, linear)
    moments = inputs.t() @ inputs / len(inputs)
    compared = 0
    for neuron, matrix in enumerate(dense):
        values, vectors = torch.linalg.eig(torch.linalg.solve(moments, matrix))
        values, vectors = values.real, vectors.real
        lowest, highest = values.argmin(), values.argmax()
        upper = criterion == "depth" and bool(values[highest] > -values[lowest])
        index = highest if upper else lowest
        # The end of a depth unit is chosen by the folds; where both are about equal it may be the other one.
        if criterion == "depth" and abs(values[highest] + values[lowest]) < 0.3 * values.abs().max():
            continue
        expected = vectors[:, index] / vectors[:, index].norm()
        assert abs(float(expected @ layer.direction[neuron])) > 1 - 1e-6
        form = expected @ matrix @ expected
        torch.testing.assert_close(layer.fit_eigenvalue[neuron], form, rtol=1e-6, atol=1e-12)
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize(("linear", "criterion"), LINEARS)
def test_no_direction_has_more_curvature_per_change_of_the_pre_activation(linear, criterion):
    case = with_mean()
    inputs, dense = inputs_of(case, linear), captured(case, linear, criterion).dense()

    def ratio(directions):
        form = torch.einsum("nd,nde,ne->n", directions, dense, directions)
        return (form if criterion == "depth" else -form) / (directions @ inputs.t()).square().mean(1)

    layer, plain = analyze(case, linear, criterion), analyze(case, linear, criterion, whiten=False)
    sign = layer.fit_eigenvalue.sign() if criterion == "depth" else 1.0
    best = sign * ratio(layer.direction)
    for other in (plain.direction, *torch.randn(20, *layer.direction.shape, dtype=torch.float64)):
        # The ridge costs a per mille of the moments, which a direction of small inputs can feel.
        assert (sign * ratio(other) <= best * 1.02 + 1e-9).all()
    assert (best > sign * ratio(plain.direction) * 1.2).any()


@pytest.mark.parametrize("criterion", ["width", "depth"])
def test_the_units_of_the_inputs_do_not_matter(criterion, monkeypatch):
    """A linear change of the inputs that the weights undo leaves gains, errors and pre-activations as they are."""
    monkeypatch.setattr(moments_module, "_RIDGE", 0.0)
    case = with_mean()
    other = copy.deepcopy(case)
    torch.manual_seed(1)
    change = torch.randn(6, 6, dtype=torch.float64) + 3 * torch.eye(6, dtype=torch.float64)
    other.model.mlp.register_forward_pre_hook(lambda module, args: (args[0] @ change,))
    with torch.no_grad():
        other.model.mlp.fc1.weight.copy_(case.model.mlp.fc1.weight @ torch.linalg.inv(change).t())
    torch.testing.assert_close(other.loss(), case.loss())
    here, there = (analyze(each, "mlp.fc1", criterion) for each in (case, other))
    torch.testing.assert_close(there.gain, here.gain, rtol=1e-6, atol=1e-12)
    assert torch.equal(there.significant, here.significant)
    torch.testing.assert_close(there.response * there.step, here.response * here.step, rtol=1e-6, atol=0)
    plain = [analyze(each, "mlp.fc1", criterion, whiten=False) for each in (case, other)]
    assert not torch.allclose(plain[0].gain, plain[1].gain, rtol=0.1)


@pytest.mark.parametrize(("linear", "criterion"), [*LINEARS, ("attention.value", "depth"), ("head", "depth")])
def test_inputs_that_do_not_fill_their_space(linear, criterion):
    """Behind a norm the components of an input depend on each other, and a probe may have fewer tokens than these."""
    case = transformer_case(samples=4, tokens=2, width=10)
    case.model.float()
    case.batch["x"] = case.batch["x"].float()
    layer = analyze(case, linear, criterion)
    torch.testing.assert_close(layer.direction.norm(dim=1), torch.ones(layer.neurons))
    assert (layer.response * layer.step > 0).all()


def test_tokens_that_are_nearly_alike_are_analysed_in_the_space_of_the_inputs(monkeypatch):
    """In their own space coordinates of the second moments would be rounding, and not positive definite."""

    def report(dtype):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(300, 16), nn.GELU(), nn.Linear(16, 5)).to(dtype)
        alike = torch.randn(300)
        alike[:3] *= 30  # as the few huge features of trained transformers
        x = torch.randn(400, 300) * torch.logspace(0, -4, 300) + alike * torch.rand(400, 1)
        batch = (x.to(dtype), torch.randint(5, (400,)))
        return analyze_curvature(
            model,
            [batch],
            "depth",
            loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
            linears=["0"],
            max_tokens=100,
            whiten=True,
            solver=EXACT,
        )["0", "depth"]

    found = report(torch.float32)
    monkeypatch.setattr(solve_module, "pays", lambda *sizes: False)
    exact = report(torch.float64)
    torch.testing.assert_close(found.eigenvalue, exact.eigenvalue, rtol=0.02, atol=0)
    torch.testing.assert_close(found.gain, exact.gain, rtol=0.05, atol=0.01 * float(exact.gain.max()))


@pytest.mark.parametrize("step_size", [0.2, 3.0])
def test_the_step_is_a_share_of_the_pre_activation(step_size):
    case = with_mean()
    layer = analyze(case, "mlp.fc1", "depth", step_size=step_size)
    inputs = inputs_of(case, "mlp.fc1")
    module = case.model.mlp.fc1
    change = (inputs @ (layer.direction * layer.step[:, None]).t()).square().mean(0).sqrt()
    size = (inputs @ torch.cat([module.weight, module.bias[:, None]], 1).t()).square().mean(0).sqrt()
    torch.testing.assert_close(change, min(step_size, 0.5) * size)


@pytest.mark.parametrize("criterion", ["width", "depth"])
def test_noise_is_not_selected(criterion):
    results = []
    for seed in range(25):
        case = transformer_case(seed, samples=96, hidden=32)
        results.append(
            check_null_model(
                case.model, [case.batch], criterion, loss=cross_entropy, linears=["mlp.fc1"], whiten=True, seed=seed
            )
        )
    fraction = sum(result.selected for result in results) / sum(result.neurons for result in results)
    assert fraction <= results[0].nominal


def test_screening_finds_the_same_best_neurons_as_the_exact_solver():
    case = transformer_case(samples=64, tokens=12, width=12, hidden=48)
    screened = SolverOptions(screen_tokens=0.5, screen_floor=64, shortlist=0.5, shortlist_floor=8)
    exact, quick = (analyze(case, "mlp.fc1", "depth", solver=solver) for solver in (EXACT, screened))
    # Proportional to `vᵀ S v / vᵀ M v`, which is what is extreme; two directions may have it in common.
    reached, extreme = (layer.fit_eigenvalue * layer.step.square() for layer in (quick, exact))
    best = extreme.abs().topk(8).indices
    assert quick.refined[best].all()
    assert (reached / extreme)[best].min() > 0.9


@pytest.mark.parametrize("kind", ["plain", "gated", "groups"])
def test_whitening_vectors_is_whitening_inputs(kind):
    """The same products, of inputs that were whitened once and of vectors that are whitened in each product."""
    torch.manual_seed(0)
    tokens, size, neurons, groups, rows = 9, 5, 4, 2 if kind == "groups" else 1, 2 if kind == "gated" else 1
    factor = torch.randn(groups, size, size, dtype=torch.float64).tril() + 4 * torch.eye(size, dtype=torch.float64)
    inputs = torch.randn(tokens, groups, size, dtype=torch.float64)
    coefficients = torch.randn(tokens, rows, neurons, dtype=torch.float64)
    coefficients = coefficients if kind == "gated" else coefficients[:, 0]

    def operator(inputs):
        inputs = inputs.repeat_interleave(neurons // groups, dim=1) if kind == "groups" else inputs[:, 0]
        return CurvatureOperator([(inputs, coefficients)], 1.0, Ranks())

    vectors = torch.randn(rows * size, neurons, dtype=torch.float64)
    expected = operator(whitened_inputs(factor, inputs))(vectors)
    torch.testing.assert_close(products(factor, operator(inputs)(directions(factor, vectors))), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("criterion", ["width", "depth"])
def test_few_neurons_are_refined_to_the_end_on_inputs_as_they_are(criterion, bias):
    case = transformer_case(samples=64, tokens=12)
    if not bias:
        case.model.mlp.fc1.bias = None
    few = SolverOptions(0.5, 64, 7, 0.3, 2, refine_steps=7, leaders=1, polish_steps=7, tolerance=0)
    exact, quick = (analyze(case, "mlp.fc1", criterion, solver=solver) for solver in (EXACT, few))
    refined = quick.refined
    assert 0 < refined.sum() < quick.neurons
    torch.testing.assert_close(quick.fit_eigenvalue[refined], exact.fit_eigenvalue[refined], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(quick.gain[refined], exact.gain[refined], rtol=1e-6, atol=1e-12)


def test_tokens_for_scales_are_drawn_from_every_position():
    """Also where a sequence is longer than what is taken of it; and batches are only a way to cut the samples."""
    samples, tokens = 60, 50
    chosen = rows_for_scale(samples, tokens, 0, None, torch.device("cpu"))
    assert len(chosen.unique()) == len(chosen) == samples * (tokens // 3)
    assert (chosen // tokens).bincount().unique().tolist() == [tokens // 3]
    positions = (chosen % tokens).bincount(minlength=tokens)
    assert positions.min() > 0.8 * positions.double().mean()  # the first is the class token
    parts = [
        rows_for_scale(last - first, tokens, first, None, torch.device("cpu")) + first * tokens
        for first, last in ((0, 7), (7, 60))
    ]
    assert torch.equal(torch.cat(parts), chosen)


def test_batches_of_long_sequences_give_the_result_of_one():
    case = transformer_case(samples=12, tokens=70)
    parts = [{name: value[rows] for name, value in case.batch.items()} for rows in (slice(0, 5), slice(5, 12))]
    options = {"loss": cross_entropy, "solver": EXACT, "whiten": True, "max_tokens": 10**6}
    one, two = (analyze_curvature(case.model, batches, **options) for batches in ([case.batch], parts))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.gain, b.gain, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(a.response, b.response, rtol=1e-8, atol=0)


@pytest.mark.parametrize("moments", [torch.full((3, 3), torch.inf), torch.diag(torch.tensor([1.0, -1.0, 1.0]))])
def test_moments_that_cannot_be_factored_name_the_layer(moments):
    with pytest.raises(ValueError, match="inputs of mlp.fc1 cannot be whitened: .* range of torch.float32"):
        moments_module.Moments(moments[None], torch.ones(1, 2)).factor("mlp.fc1")
