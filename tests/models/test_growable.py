"""Growable linears compute the published formula, for every kind of unit, nested and with shared targets."""

import copy
import math

import pytest
import torch
from model_cases import branched, every_unit, randomize_
from torch import Tensor, nn

from hf_saddle.models import GrowableLinear, PairedLinear


NESTINGS = {"one": [4], "nested": [4, 3, 2], "shared": [9, 8]}
every_nesting = pytest.mark.parametrize("skip_sizes", NESTINGS.values(), ids=NESTINGS)


def build(
    skip_sizes: list[int], unit: str, dtype: torch.dtype = torch.float64, *, activation: str = "gelu", **kwargs
) -> GrowableLinear:
    torch.manual_seed(0)
    linear = branched(GrowableLinear(5, 7, **kwargs), skip_sizes, unit, activation).to(dtype)
    randomize_(linear, scale=0.7)
    return linear


def plain(linear: GrowableLinear, x: Tensor) -> Tensor:
    """The formula, unit by unit, for a single input of shape `(d,)`."""
    weight, bias = linear.weight, linear.bias
    if isinstance(linear, PairedLinear):
        weight, bias = weight + linear.twin_weight, bias + linear.twin_bias
    z = [sum(weight[i, k] * x[k] for k in range(len(x))) + bias[i] for i in range(len(weight))]
    if linear.skip is not None:
        s = plain(linear.skip.linear, x)
        for j, neuron in enumerate(linear.skip.target.tolist()):
            gelu = 0.5 * s[j] * (1 + torch.erf(s[j] / math.sqrt(2)))
            response = linear.skip.gain[j] * gelu if linear.skip.kind == "gain" else s[j] + gelu
            z[neuron] = z[neuron] + response
    return torch.stack(z)


@every_unit
@every_nesting
def test_output_is_the_formula(unit, skip_sizes):
    linear, x = build(skip_sizes, unit), torch.randn(3, 5, dtype=torch.float64)
    expected = torch.stack([plain(linear, row) for row in x])
    torch.testing.assert_close(linear(x), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(linear(x.view(1, 3, 1, 5)), expected.view(1, 3, 1, 7), rtol=1e-13, atol=1e-13)
    assert not torch.allclose(expected, nn.functional.linear(x, linear.weight, linear.bias), atol=1e-2)


@every_unit
@every_nesting
def test_gradients_are_those_of_the_formula(unit, skip_sizes):
    linear = build(skip_sizes, unit)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 7, dtype=torch.float64)
    leaves = [x, *linear.parameters()]
    actual = torch.autograd.grad((linear(x) * weight).sum(), leaves)
    expected = torch.autograd.grad((torch.stack([plain(linear, row) for row in x]) * weight).sum(), leaves)
    for found, wanted in zip(actual, expected, strict=True):
        assert wanted.abs().max() > 1e-6
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


@every_unit
def test_second_derivatives(unit):
    linear, x = build([4, 2], unit), torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(linear, (x,))


def test_units_of_a_kind_have_their_parameters():
    names = {unit: [name for name, _ in build([2], unit).named_parameters()] for unit in ("gain", "residual_pair")}
    assert names["gain"] == ["weight", "bias", "skip.gain", "skip.linear.weight", "skip.linear.bias"]
    assert names["residual_pair"][2:] == [
        f"skip.linear.{name}" for name in ("weight", "bias", "twin_weight", "twin_bias")
    ]


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_branch_it_is_nn_linear(bias):
    linear, stock = GrowableLinear(5, 7, bias=bias), nn.Linear(5, 7, bias=bias)
    linear.load_state_dict(stock.state_dict(), strict=True)
    x = torch.randn(3, 5)
    assert torch.equal(linear(x), stock(x))
    assert linear.skip_sizes == []


@every_unit
def test_a_fresh_pair_or_zero_gain_is_silent(unit):
    torch.manual_seed(0)
    linear, x = branched(GrowableLinear(5, 7), [4, 2], unit), torch.randn(3, 5)
    silent = torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))
    assert silent == (unit != "residual")


@pytest.mark.parametrize("others", [0, 20], ids=["alone", "among-others"])
def test_opposed_units_of_one_neuron_cancel_exactly(others):
    linear = build([2 + others], "gain", torch.float32)
    plain = copy.deepcopy(linear)
    with torch.no_grad():
        linear.skip.linear.weight[1], linear.skip.linear.bias[1] = (
            linear.skip.linear.weight[0],
            linear.skip.linear.bias[0],
        )
        linear.skip.gain[1] = -linear.skip.gain[0]
        linear.skip.target[:2], linear.skip.target[2:] = 3, 4
        linear.skip.check_targets_("target")
        plain.skip.load_state_dict(linear.skip.state_dict())
        plain.skip.gain[:2] = 0
    x = torch.randn(50, 5)
    assert torch.equal(linear(x)[:, 3], plain(x)[:, 3])
    assert torch.equal(linear(x)[:, 3], nn.functional.linear(x, linear.weight, linear.bias)[:, 3])


@pytest.mark.parametrize("target, shared", [([6, 0, 2, 1], False), ([6, 0, 2, 6], True)], ids=["distinct", "shared"])
def test_shared_targets_are_noticed_and_copied(target, shared):
    linear, other = build([4], "gain"), build([4], "gain")
    linear.skip.target.copy_(torch.tensor(target))
    linear.skip.check_targets_("target")
    other.load_state_dict(linear.state_dict())
    x = torch.randn(3, 5, dtype=torch.float64)
    for twin in (linear, other, copy.deepcopy(linear)):
        assert twin.skip.shared_targets is shared
        assert torch.equal(twin(x), linear(x))


@pytest.mark.parametrize("bad", [-1, 7, 2**40])
def test_a_target_out_of_range_is_refused(bad):
    linear = build([4], "gain")
    state = linear.state_dict() | {"skip.target": torch.tensor([0, 1, 2, bad])}
    before = linear.skip.target.clone()
    with pytest.raises(ValueError, match=rf"`skip.target` must hold neurons in \[0, 7\).*{bad}"):
        linear.load_state_dict(state)
    assert torch.equal(linear.skip.target, before)


def test_an_unknown_kind_of_unit_is_refused():
    with pytest.raises(ValueError, match="skip_unit.*'sum'"):
        branched(GrowableLinear(5, 7), [2], "sum")


@every_unit
@pytest.mark.parametrize("skip_sizes", [[4, 2], [9]], ids=["nested", "shared"])
def test_autocast_gives_the_dtype_of_the_linear(unit, skip_sizes):
    linear, x = build(skip_sizes, unit, torch.float32), torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), linear(x), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu_new"])
def test_the_branch_has_the_layers_activation(activation):
    linear, x = build([3], "gain", activation=activation), torch.randn(3, 5, dtype=torch.float64)
    functions = {"relu": torch.relu, "silu": nn.functional.silu}
    function = functions.get(activation, lambda s: nn.functional.gelu(s, approximate="tanh"))
    expected = nn.functional.linear(x, linear.weight, linear.bias)
    response = linear.skip.gain * function(nn.functional.linear(x, linear.skip.linear.weight, linear.skip.linear.bias))
    expected = expected.index_add(-1, linear.skip.target, response)
    torch.testing.assert_close(linear(x), expected)


@every_unit
@every_nesting
def test_the_backward_pass_copies_no_gradient(unit, skip_sizes):
    linear, x = build(skip_sizes, unit), torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    z = linear(x)
    with torch.no_grad():
        assert torch.equal(z, linear(x)) and torch.equal(z.flatten(0, 1), linear(x.flatten(0, 1)))
    nodes, seen = [z.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert "IndexAddBackward0" in names and not any("CopySlices" in name for name in names)
