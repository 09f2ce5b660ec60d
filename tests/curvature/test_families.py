"""S and D of every kind of neuron are the Hessians of the loss, and directions are what a real growth takes."""

import copy

import pytest
import torch
from curvature_cases import EXACT, captured_by
from family_cases import FAMILY_CASES, deepened, family_case, family_loss, halved
from torch import nn

from hf_saddle.curvature import analyze_curvature
from hf_saddle.models.layouts import layout_of


# RMSNorms and rotary embeddings compute in float32 inside of float64 models.
ROUNDED = {"llama", "mistral", "qwen3", "gemma3", "t5 gated"}


def hessian_product(case, displace, size, vector):
    """`∂²L/∂p² v` at `p = 0` by autograd; `displace(p)` is a context in which the loss depends on `p`."""
    dummy = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    with displace(dummy):
        loss = case.loss()
    (gradient,) = torch.autograd.grad(loss, dummy, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ vector, dummy)
    return product


def assert_products(case, name, operator, displace, bias):
    """The products of an operator are those of the Hessian, for the first and the last neuron."""
    tolerance = 1e-4 if name in ROUNDED else 1e-9
    count = operator.segments[0][1].shape[-1]
    rows = 2 if operator.segments[0][1].dim() == 3 else 1
    size = operator.segments[0][0].shape[-1] * rows
    vectors = torch.randn(size, count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if not bias:
        vectors.view(rows, -1, count)[:, -1] = 0
    products = operator(vectors)
    assert products.abs().max() > 1e-7
    for neuron in (0, count - 1):
        expected = hessian_product(case, lambda p, i=neuron: displace(p, i), size, vectors[:, neuron])
        if not bias:
            expected.view(rows, -1)[:, -1] = 0
        error = (products[:, neuron] - expected).norm() / expected.norm().clamp_min(1e-3 * products.norm())
        assert error < tolerance, f"{float(error):.2g}"


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_depth_matrices_are_the_hessians_of_quadratic_units(name):
    case = family_case(name)
    for linear in case.linears():
        operator = captured_by(case.model, case.batch, family_loss, linear, "depth")
        bias = case.model.get_submodule(linear).bias is not None
        assert_products(case, name, operator, lambda p, i, at=linear: deepened(case, at, i, p), bias)


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_width_matrices_are_the_hessians_of_symmetric_splits(name):
    case = family_case(name)
    for neurons in case.neurons():
        operator = captured_by(case.model, case.batch, family_loss, neurons.rows[0], "width")
        bias = case.model.get_submodule(neurons.rows[0]).bias is not None
        assert_products(case, name, operator, lambda p, i, at=neurons: halved(case, at, i, p), bias)
