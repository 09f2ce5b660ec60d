"""φ' and φ'' against autograd; classes are recognised by torch's and transformers' names."""

import pytest
import torch
from torch import nn

from hf_saddle.curvature import ACTIVATIONS, activation_of


def derivatives(function, z):
    """First and second derivative by autograd."""
    z = z.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(z).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    return first.detach(), second


Z = torch.linspace(-6, 6, 101, dtype=torch.float64)
NAMES = ["gelu", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "quick_gelu", "silu"]


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_transformers_activations_are_those_of_autograd(name):
    module = pytest.importorskip("transformers.activations").ACT2FN[name]
    first, second = derivatives(module, Z)
    formula = activation_of(module)
    # FastGELU rounds √(2/π) to ten digits.
    tolerance = 1e-8 if name == "gelu_fast" else 1e-12
    torch.testing.assert_close(formula.first(Z), first, rtol=0, atol=tolerance)
    torch.testing.assert_close(formula.second(Z), second, rtol=0, atol=tolerance)


def test_relu_uses_a_named_softplus_surrogate():
    formula = activation_of(nn.ReLU())
    assert "softplus surrogate" in formula.name
    _, second = derivatives(nn.Softplus(beta=4, threshold=100), Z)
    torch.testing.assert_close(formula.second(Z), second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("module", [nn.Mish(), nn.ELU(), nn.Softmax(dim=-1)], ids=str)
def test_unknown_activations_raise_and_name_the_supported_ones(module):
    with pytest.raises(ValueError, match="SiLU"):
        activation_of(module)


def test_gelu_has_the_largest_curvature_at_zero():
    assert float(ACTIVATIONS["gelu"].second(torch.zeros(()))) == pytest.approx(2 / (2 * torch.pi) ** 0.5)
