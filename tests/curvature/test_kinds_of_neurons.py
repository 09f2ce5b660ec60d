"""Patches of convolutions, gates and batch normalisations: what is measured of them, and what is refused and why."""

import logging
from dataclasses import replace

import pytest
import torch
from architecture_cases import family_case, family_loss
from curvature_cases import EXACT, captured_by
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_saddle.curvature import analyze_curvature, check_null_model
from hf_saddle.curvature.capture.calls import Call
from hf_saddle.curvature.capture.inputs import input_square_norms, inputs_at, neuron_norms, neurons_at
from hf_saddle.curvature.capture.shown import LOSS_SCALE, Shown


CONVOLUTIONS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    "dilated": {"kernel_size": 3, "dilation": (2, 1), "padding": (2, 1)},
    "same": {"kernel_size": 4, "padding": "same"},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 5, "padding": 2, "padding_mode": "circular"},
    "pointwise": {"kernel_size": 1},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_are_what_the_convolution_multiplies(name):
    torch.manual_seed(0)
    module = nn.Conv2d(4, 8, **CONVOLUTIONS[name], dtype=torch.float64)
    images = torch.randn(3, 4, 7, 9, dtype=torch.float64)
    output = module(images).detach()
    weight = module.weight.detach().flatten(1)
    rows = torch.randperm(output[:, 0].numel())[:20]
    patches = inputs_at(images, module, rows)
    if module.groups > 1:
        assert patches.shape == (20, module.groups, weight.shape[1])
        patches = patches.repeat_interleave(8 // module.groups, dim=1)
        expected = (patches * weight).sum(-1)
    else:
        expected = patches @ weight.t()
    torch.testing.assert_close(expected + module.bias, neurons_at(output, module, rows))
    torch.testing.assert_close(neurons_at(output, module, rows), neurons_at(output, module)[rows])
    every = inputs_at(images, module)
    torch.testing.assert_close(input_square_norms(images, module), every.flatten(1).square().sum(1))
    torch.testing.assert_close(neuron_norms(output, module), neurons_at(output, module).norm(dim=1))


@pytest.mark.parametrize("name", ["plain", "depthwise"])
def test_tokens_that_are_drawn_leave_the_matrices_unbiased(name):
    torch.manual_seed(0)
    module = nn.Conv2d(4, 8, **CONVOLUTIONS[name], dtype=torch.float64)
    images = torch.randn(3, 4, 7, 9, dtype=torch.float64)
    gradient = torch.randn_like(module(images)) * torch.rand(1, 1, 1, 1, dtype=torch.float64)
    count = gradient[:, 0].numel()
    call = Call("conv", module, 3, 0, count, mask=None, rows=torch.arange(count), pre_activation_square=gradient.sum())

    def matrices(budget, seed):
        tokens = Shown(call, images, gradient * LOSS_SCALE).drawn(0, budget, seed)
        assert budget < count and len(tokens) <= budget + 1 or len(tokens) == count
        inputs, coefficients = tokens.segment(torch.arange(len(tokens)))
        if inputs.dim() == 2:
            inputs = inputs[:, None].expand(-1, 8, -1)
        return torch.einsum("tn,tnd,tne->nde", coefficients, inputs, inputs)

    drawn = torch.stack([matrices(30, seed) for seed in range(300)])
    error = drawn.std(0) / 300**0.5
    exact = matrices(10**6, 0)
    away = (drawn.mean(0) - exact).abs() / error.clamp_min(1e-12)
    assert away.square().mean() < 1.5
    assert (drawn[0] - exact).abs().max() > 0.1


def test_large_kernels_keep_fewer_tokens_and_the_memory_is_stated(caplog):
    case = family_case("convnext", samples=8)
    with caplog.at_level(logging.INFO, "hf_saddle.curvature"):
        report = analyze_curvature(case.model, [case.batch], loss=family_loss, max_tokens=98)
    assert "MiB of tokens" in caplog.text
    assert report.tokens == 8 * 64
    assert len(report) == 2 * 3


@pytest.mark.thinned(3)
@pytest.mark.parametrize("criterion", ["width", "depth"])
@pytest.mark.parametrize("name", ["dinov2 swiglu", "resnet", "convnext", "gpt2"])
def test_noise_is_not_selected(name, criterion):
    """Of every kind of neuron the null model selects no more than its nominal rate."""
    results = []
    for seed in range(6):
        case = family_case(name, samples=48)
        results.append(
            check_null_model(case.model, [case.batch], criterion, loss=family_loss, whiten=seed % 2 == 1, seed=seed)
        )
    fraction = sum(result.selected for result in results) / sum(result.neurons for result in results)
    assert fraction <= results[0].nominal


@pytest.mark.thinned(3)
@pytest.mark.parametrize("whiten", [False, True], ids=["eigenvectors", "whitened"])
@pytest.mark.parametrize("name", ["dinov2 swiglu", "convnext", "resnet"])
def test_a_shortlist_of_neurons_is_refined_on_their_own_tokens(name, whiten):
    """Neurons that are refined to the end have the eigenvalues that they have without screening."""
    case = family_case(name, samples=12)
    screened = replace(EXACT, screen_tokens=0.5, screen_floor=64, shortlist=0.6, shortlist_floor=3, refine_steps=60)
    options = {"loss": family_loss, "whiten": whiten, "max_tokens": 10**6}
    for criterion in ("width", "depth"):
        compared = 0
        exact, quick = (
            analyze_curvature(case.model, [case.batch], criterion, solver=solver, **options)
            for solver in (EXACT, screened)
        )
        for best, entry in zip(exact, quick, strict=True):
            # Screening chooses the end of a depth unit.
            same = entry.refined & (best.fit_eigenvalue.sign() == entry.fit_eigenvalue.sign())
            clear = best.fit_eigenvalue.abs() > 1e-3 * best.fit_eigenvalue.abs().max()
            assert 0 < entry.refined.sum() < entry.neurons
            compared += int((same & clear).sum())
            found, expected = (each.fit_eigenvalue[same & clear] for each in (entry, best))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        assert compared > 4


def test_costs_count_all_rows_columns_and_norms():
    case = family_case("dinov2 swiglu")
    entry = analyze_curvature(case.model, [case.batch], "width", loss=family_loss).layers[0]
    width = case.model.config.hidden_size
    assert (entry.cost_parameters, entry.cost_macs) == (2 * (width + 1) + width, 3 * width)
    case = family_case("resnet")
    report = analyze_curvature(case.model, [case.batch], ("width", "depth"), loss=family_loss)
    at = "resnet.encoder.stages.1.layers.1.layer.0.convolution"
    assert report[at, "width"].cost_parameters == 8 * 9 + 8 * 9 + 2
    assert report[at, "width"].cost_macs == 8 * 9 + 8 * 9
    assert (report[at, "depth"].cost_parameters, report[at, "depth"].cost_macs) == (8 * 9 + 1, 8 * 9 + 1)


def test_rectifiers_are_left_to_depth():
    case = family_case("resnet")
    for module in list(case.model.modules()):
        for child, inner in module.named_children():
            if isinstance(inner, nn.SiLU):
                setattr(module, child, nn.ReLU())
    report = analyze_curvature(case.model, [case.batch], ("width", "depth"), loss=family_loss)
    assert {entry.criterion for entry in report} == {"depth"}
    at = "resnet.encoder.stages.0.layers.0.layer.0.convolution"
    assert "ReLU is piecewise linear" in report.skipped[at]


class Convolutional(nn.Module):
    """A convolution, a normalisation, an activation and a reader."""

    def __init__(self, norm=None, reader=None, rows=None):
        super().__init__()
        self.rows = rows or nn.Conv2d(3, 6, 3, padding=1)
        self.norm = norm or nn.BatchNorm2d(6)
        self.activation = nn.GELU()
        self.reader = reader or nn.Conv2d(6, 4, 3)

    def forward(self, x):
        return self.reader(self.activation(self.norm(self.rows(x))))


class InPlace(Convolutional):
    """Reads the normalised output beside the activation."""

    def forward(self, x):
        normed = self.norm(self.rows(x))
        return self.reader(self.activation(normed)) + normed.mean()


class Moved(Convolutional):
    """Moves the channels to the end before the activation."""

    def forward(self, x):
        hidden = self.activation(self.norm(self.rows(x)).movedim(1, -1))
        return self.reader(hidden.movedim(-1, 1))


REFUSED = {
    "batch statistics": (Convolutional(norm=nn.BatchNorm2d(6, track_running_stats=False)), "statistics of the batch"),
    "group norm": (Convolutional(norm=nn.GroupNorm(2, 6)), "no activation"),
    "groups": (Convolutional(rows=nn.Conv2d(3, 6, 3, padding=1, groups=3)), "channels of a convolution with groups"),
    "reader": (Convolutional(reader=nn.Conv2d(6, 6, 3, groups=3)), "read by reader, a convolution with groups"),
    "two readers": (InPlace(), "not a module"),
    "moved": (Moved(), "reshaped before its activation"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_channels_that_cannot_be_split_say_why(name):
    model, reason = REFUSED[name]
    batch = {"x": torch.randn(6, 3, 5, 7, generator=torch.Generator().manual_seed(0))}
    report = analyze_curvature(
        model, [batch], ("width", "depth"), loss=lambda model, batch: model(batch["x"]).square().mean()
    )
    assert report.get("rows", "width") is None
    assert report.get("rows", "depth") is not None
    assert reason in report.skipped["rows"]


def test_convolutions_of_any_model_are_analysed():
    torch.manual_seed(0)
    model = Convolutional()
    batch = {"x": torch.randn(6, 3, 5, 7)}
    report = analyze_curvature(
        model, [batch], ("width", "depth"), loss=lambda model, batch: model(batch["x"]).square().mean()
    )
    assert [(entry.linear, entry.criterion) for entry in report] == [
        ("rows", "width"),
        ("rows", "depth"),
        ("reader", "depth"),
    ]


def gate_of(model):
    return model.dinov2.encoder.layer[0].mlp


GATES = {
    "another product": (lambda mlp: mlp.down_proj.register_forward_pre_hook(lambda m, a: (a[0] * 1.1,)), "product of"),
    "another reader": (lambda mlp: setattr(mlp, "__class__", Reader), "not a module"),
    "no curvature": (lambda mlp: setattr(mlp, "act_fn", nn.ReLU()), "piecewise linear"),
}


class Reader(nn.Module):
    """A gated MLP whose second rows are read beside the product too."""

    def forward(self, x):
        up = self.up_proj(x)
        return self.down_proj(self.act_fn(self.gate_proj(x)) * up) + up.mean(-1, keepdim=True)


@pytest.mark.parametrize("name", GATES)
def test_gates_are_verified(name):
    case = family_case("dinov2 swiglu")
    change, reason = GATES[name]
    change(gate_of(case.model))
    report = analyze_curvature(case.model, [case.batch], ("width", "depth"), loss=family_loss)
    at = "dinov2.encoder.layer.0.mlp"
    assert report.get(f"{at}.gate_proj", "width") is None
    assert reason in report.skipped[f"{at}.gate_proj"]
    assert f"together with those of {at}.gate_proj" in report.skipped[f"{at}.up_proj"]
    assert report.get(f"{at}.gate_proj", "depth") is not None
    assert report.get("dinov2.encoder.layer.1.mlp.gate_proj", "width") is not None


def test_gates_are_measured_without_their_partner_among_the_layers():
    case = family_case("dinov2 swiglu")
    at = "dinov2.encoder.layer.0.mlp.gate_proj"
    report = analyze_curvature(case.model, [case.batch], ("width", "depth"), loss=family_loss, linears=[at])
    assert [(entry.linear, entry.criterion) for entry in report] == [(at, "width"), (at, "depth")]
    assert report[at, "width"].direction.shape[1] == 2 * (case.model.config.hidden_size + 1)
    assert report[at, "depth"].direction.shape[1] == case.model.config.hidden_size + 1


def checkpointed(forward):
    """A forward pass that is repeated in the backward pass."""
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


@pytest.mark.parametrize("name", ["dinov2 swiglu", "llama", "gpt2", "resnet"])
def test_checkpointing_changes_nothing(name):
    case = family_case(name)
    at = next(iter(case.neurons())).rows[0]
    expected = captured_by(case.model, case.batch, family_loss, at, "width").dense()
    case.model.config.use_cache = False  # keys are not to be cached twice
    block = case.model.get_submodule(next(case.blocks())[0])
    block.forward = checkpointed(block.forward)
    torch.testing.assert_close(captured_by(case.model, case.batch, family_loss, at, "width").dense(), expected)
