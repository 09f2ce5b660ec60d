"""Layers with fewer tokens than inputs are analysed in the space of the tokens, with the result of all inputs."""

import pytest
import torch
from architecture_cases import family_case, family_loss
from curvature_cases import EXACT, cross_entropy, transformer_case

from hf_saddle.curvature import analyze_curvature, solve
from hf_saddle.curvature.rowspace import RowSpace, pays


FIELDS = ("eigenvalue", "standard_error", "fit_eigenvalue", "response", "step", "gain", "direction")
CONVOLUTION = "resnet.encoder.stages.1.layers.1.layer.0.convolution"  # 64 tokens of 72 entries, without bias
GATE = "dinov2.encoder.layer.0.mlp.gate_proj"


def wide():
    case = transformer_case(samples=8, tokens=4, width=40, hidden=12)
    return case.model, case.batch, cross_entropy


def family(name):
    case = family_case(name, samples=4)
    return case.model, case.batch, family_loss


CASES = {
    "linear": (wide, {"linears": ["mlp.fc1"]}),
    "linear, whitened": (wide, {"linears": ["mlp.fc1"], "whiten": True}),
    "convolution": (lambda: family("resnet"), {"linears": [CONVOLUTION]}),
    "convolution, whitened": (lambda: family("resnet"), {"linears": [CONVOLUTION], "whiten": True}),
    "gate": (lambda: family("dinov2 swiglu"), {"linears": [GATE], "max_tokens": 12}),
}


@pytest.mark.parametrize("criterion", ["width", "depth"])
@pytest.mark.parametrize("name", CASES)
def test_the_space_of_the_tokens_holds_all_extreme_directions(name, criterion, monkeypatch):
    make, options = CASES[name]
    found, seen = [], []
    monkeypatch.setattr(RowSpace, "of", classmethod(recorded(RowSpace.of, seen)))
    for inside in (False, True):
        monkeypatch.setattr(solve, "pays", lambda tokens, inputs, *rest, inside=inside: inside and tokens <= inputs)
        model, batch, loss = make()
        options = {"max_tokens": 10**6} | options
        found.append(analyze_curvature(model, [batch], criterion, loss=loss, solver=EXACT, **options).layers[0])
    assert len(seen) == 1
    expected, actual = found
    for field in FIELDS:
        left, right = getattr(actual, field), getattr(expected, field)
        if field == "direction":
            assert ((left * right).sum(1).abs() > 1 - 1e-6).all()
            continue
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6 * float(right.abs().max()))


def recorded(function, seen):
    def call(cls, inputs):
        seen.append(inputs.shape)
        return function(inputs)

    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_that_repeat_others_have_coordinates_too(dtype):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 50, generator=generator, dtype=torch.float64).to(dtype)
    inputs[10:] = inputs[:10]
    space = RowSpace.of(inputs)
    tolerance = 1e-2 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(space.own @ space.own.t(), inputs @ inputs.t(), rtol=tolerance, atol=tolerance)
    direction = inputs.t() @ torch.randn(20, 3, generator=generator, dtype=torch.float64).to(dtype)
    again = space.directions(space.coordinates(direction))
    torch.testing.assert_close(again, direction, rtol=tolerance, atol=tolerance * float(direction.abs().max()))


def test_it_is_used_where_it_is_less_work():
    assert pays(tokens=256, inputs=4608, neurons=512, whiten=False)
    assert pays(tokens=900, inputs=1152, neurons=128, whiten=True)
    assert not pays(tokens=4096, inputs=384, neurons=768, whiten=True)
    assert not pays(tokens=570, inputs=576, neurons=64, whiten=False)
