"""Noise is not selected, signal is; images, not tokens, are the samples; the unit of the loss is irrelevant."""

import pytest
import torch
from curvature_cases import EXACT, Case, cross_entropy, transformer_case
from torch import nn

from hf_saddle.curvature import SolverOptions, analyze_curvature, check_null_model


SCREENED = SolverOptions(screen_tokens=0.2, screen_floor=64, shortlist=0.4, shortlist_floor=8)


class MeanMLP(nn.Module):
    """An MLP applied to every token; the classifier sees their mean."""

    def __init__(self, width: int, hidden: int, classes: int):
        super().__init__()
        self.fc1, self.activation, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, classes)

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x))).mean(dim=1)


def noise_case(seed, samples=96, tokens=6, width=8, hidden=32, shared=0.8):
    """Labels without relation to the inputs; tokens share most of their variance with the others of the image."""
    torch.manual_seed(seed)
    x = shared**0.5 * torch.randn(samples, 1, width) + (1 - shared) ** 0.5 * torch.randn(samples, tokens, width)
    return Case(MeanMLP(width, hidden, 4).double(), {"x": x.double(), "y": torch.randint(4, (samples,))})


@pytest.mark.parametrize("solver", [EXACT, SCREENED], ids=["exact", "screened"])
@pytest.mark.parametrize("criterion", ["width", "depth"])
def test_the_null_model_selects_no_more_than_its_nominal_rate(criterion, solver):
    results = [
        check_null_model(
            case.model, [case.batch], criterion, loss=cross_entropy, linears=["fc1"], solver=solver, seed=seed
        )
        for seed in range(25)
        for case in [noise_case(seed)]
    ]
    fraction = sum(result.selected for result in results) / sum(result.neurons for result in results)
    assert results[0].nominal == pytest.approx(0.0455 if criterion == "depth" else 0.02275, rel=1e-3)
    assert fraction <= results[0].nominal


def test_without_a_solver_the_null_model_has_that_of_every_analysis():
    case = noise_case(0)
    first, second = (
        check_null_model(case.model, [case.batch], "width", loss=cross_entropy, linears=["fc1"], solver=solver)
        for solver in (None, SolverOptions())
    )
    assert torch.equal(first.report["fc1", "width"].eigenvalue, second.report["fc1", "width"].eigenvalue)


def test_in_sample_eigenvalues_of_noise_are_far_below_zero_and_held_out_ones_are_around_it():
    case = noise_case(0)
    null = check_null_model(case.model, [case.batch], "width", loss=cross_entropy, linears=["fc1"], solver=EXACT)
    layer = null.report["fc1", "width"]
    assert float((layer.fit_eigenvalue / layer.standard_error).median()) < -1.5
    assert float((layer.eigenvalue / layer.standard_error).median().abs()) < 0.5


def test_a_neuron_that_should_be_two_is_selected_and_its_direction_found():
    torch.manual_seed(0)
    width, samples = 8, 512
    model = nn.Sequential(nn.Linear(width, 6), nn.GELU(), nn.Linear(6, 1)).double()
    model[2].weight.data.fill_(1.0)
    x, offset = torch.randn(samples, width).double(), torch.zeros(width).double()
    offset[3] = 0.8
    with torch.no_grad():
        z = model[0](x)
        shift = x @ offset
        gelu = nn.functional.gelu
        halves = 0.5 * (gelu(z[:, 2] + shift) + gelu(z[:, 2] - shift))
        target = model(x)[:, 0] + halves - gelu(z[:, 2])

    def loss(model, batch):
        return (model(batch[0])[:, 0] - batch[1]).square().mean()

    layer = analyze_curvature(model, [(x, target)], "width", loss=loss)["0", "width"]
    assert bool(layer.significant[2])
    assert float(layer.gain[2]) > 0
    assert abs(float(layer.direction[2, 3])) > 0.95


@pytest.mark.parametrize("criterion", ["width", "depth"])
def test_copies_of_a_token_within_an_image_add_no_significance(criterion):
    case = noise_case(1, tokens=1)
    many = {"x": case.batch["x"].expand(-1, 10, -1).contiguous(), "y": case.batch["y"]}
    one, ten = (
        analyze_curvature(case.model, [batch], criterion, loss=cross_entropy, linears=["fc1"], solver=EXACT)[
            "fc1", criterion
        ]
        for batch in (case.batch, many)
    )
    torch.testing.assert_close(ten.eigenvalue, one.eigenvalue, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(ten.standard_error, one.standard_error, rtol=1e-6, atol=1e-10)
    assert torch.equal(ten.significant, one.significant)


def test_the_standard_error_covers_the_spread_of_the_estimate_over_probes():
    """Directions hardly vary here: the spread is that of a mean over all images, the error that of a half."""
    estimates, errors = [], []
    torch.manual_seed(0)
    model = MeanMLP(3, 2, 2).double()
    for seed in range(60):
        torch.manual_seed(seed + 1)
        x = torch.randn(200, 1, 3).double() + 0.2 * torch.randn(200, 5, 3).double()
        batch = {"x": x, "y": (x[:, 0, 0] > 0).long()}
        report = analyze_curvature(model, [batch], "depth", loss=cross_entropy, linears=["fc2"], solver=EXACT)
        estimates.append(report["fc2", "depth"].eigenvalue)
        errors.append(report["fc2", "depth"].standard_error)
    ratio = torch.stack(errors).mean(0) / torch.stack(estimates).std(0)
    assert ((ratio > 1) & (ratio < 2)).all()


@pytest.mark.parametrize("solver", [EXACT, SCREENED], ids=["exact", "screened"])
@pytest.mark.parametrize("criterion", ["width", "depth"])
def test_the_unit_of_the_loss_changes_nothing_but_the_scale(criterion, solver):
    case = transformer_case(samples=32, tokens=12, width=12, hidden=48)
    case.model.float()
    case.batch["x"] = case.batch["x"].float()
    plain, scaled = (
        analyze_curvature(
            case.model,
            [case.batch],
            criterion,
            loss=lambda model, batch, factor=factor: factor * cross_entropy(model, batch),
            linears=["mlp.fc1"],
            solver=solver,
        )["mlp.fc1", criterion]
        for factor in (1, 1000)
    )
    assert torch.equal(plain.significant, scaled.significant)
    assert torch.equal(plain.refined, scaled.refined)
    assert int(plain.significant.sum()) > 0
    assert int(plain.gain.argmax()) == int(scaled.gain.argmax())
    torch.testing.assert_close(scaled.step, plain.step)
    atol = 1e-2 * float(scaled.eigenvalue.abs().max())
    torch.testing.assert_close(scaled.eigenvalue, 1000 * plain.eigenvalue, rtol=1e-2, atol=atol)


def test_only_refined_neurons_are_candidates():
    case = transformer_case(samples=32, tokens=12, width=12, hidden=48)
    layer = analyze_curvature(
        case.model, [case.batch], "depth", loss=cross_entropy, linears=["mlp.fc1"], solver=SCREENED, significance=0
    )["mlp.fc1", "depth"]
    assert int(layer.refined.sum()) == 20
    assert not bool((layer.significant & ~layer.refined).any())


def test_screening_keeps_the_best_neurons():
    case = transformer_case(samples=64, tokens=16, width=16, hidden=64)
    exact, screened = (
        analyze_curvature(case.model, [case.batch], "width", loss=cross_entropy, linears=["mlp.fc1"], solver=solver)[
            "mlp.fc1", "width"
        ]
        for solver in (EXACT, SolverOptions(screen_floor=128, shortlist=0.25, shortlist_floor=1))
    )
    best = (exact.step**2 * -exact.fit_eigenvalue).topk(8).indices
    assert int(screened.refined[best].sum()) >= 7
    kept = best[screened.refined[best]]
    torch.testing.assert_close(screened.fit_eigenvalue[kept], exact.fit_eigenvalue[kept], rtol=0.05, atol=0)
