"""A linear with a branch that another module has replaced is noticed at the next forward pass, however it was done."""

import copy
import io

import pytest
import torch
from model_cases import GROWN, build, every_class, every_growth, every_unit, output
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize

from hf_saddle.growth import GrowthPlan, LayerGrowth, grow_, merge_pairs_
from hf_saddle.models import GrowableLinear, SaddleDeiTForImageClassification, SaddleViTModel
from hf_saddle.models.sites import LINEARS


PIXELS = torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(0))
NOTICED = "has taken its place.*modules_to_not_convert"
# Every linear has a branch, nested in each.
EVERYWHERE = {layer: {"skip_sizes": {name: [3, 2] for name in LINEARS}} for layer in range(2)}
PATHS = [f"layers.{layer}.{name}{nested}" for layer in range(2) for name in LINEARS for nested in ("", ".skip.linear")]


class Quantised(nn.Module):
    """What quantisers put in the place of a linear: they read its weight and bias, and nothing else."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def by_setattr(parent, name, module):
    setattr(parent, name, module)


def by_dictionary(parent, name, module):
    parent._modules[name] = module


def by_set_submodule(parent, name, module):
    parent.set_submodule(name, module)


every_way = pytest.mark.parametrize("assign", [by_setattr, by_dictionary, by_set_submodule])


def swap(model, path, assign=by_setattr, make=Quantised):
    parent, _, name = path.rpartition(".")
    assign(model.get_submodule(parent), name, make(model.get_submodule(path)))


@every_way
@pytest.mark.parametrize("before", [True, False], ids=["ran-before", "never-ran"])
@every_class
def test_a_swap_is_noticed(model_class, assign, before):
    model = build(model_class, GROWN)
    if before:
        output(model, PIXELS)
    swap(model.base_model, "layers.0.mlp.fc1", assign)
    with pytest.raises(ValueError, match=rf"layers\.0\.mlp\.fc1.*{NOTICED}"):
        output(model, PIXELS)


@pytest.mark.parametrize("path", PATHS)
def test_a_swap_of_any_linear_with_a_branch_is_noticed(path):
    model = build(SaddleViTModel, EVERYWHERE)
    output(model, PIXELS)
    swap(model, path)
    with pytest.raises(ValueError, match=NOTICED):
        output(model, PIXELS)


def test_a_swap_of_paired_rows_is_noticed():
    model = build(SaddleViTModel, {0: {"skip_sizes": {"mlp.fc1": [4]}}}, skip_unit="residual_pair")
    swap(model, "layers.0.mlp.fc1.skip.linear")
    with pytest.raises(ValueError, match=f"paired rows.*{NOTICED}"):
        output(model, PIXELS)


@every_unit
def test_a_swap_that_keeps_the_branches_computes_as_before(unit):
    """Linears without branches, the innermost rows of branches among them, are quantised as any other."""
    model = build(SaddleViTModel, GROWN, skip_unit=unit)
    expected = output(model, PIXELS)
    paths = [
        site.path
        for site in model.growable_linears()
        if type(site.module) is GrowableLinear and site.module.skip is None
    ]
    for path in paths:
        swap(model, path)
    assert any("skip" in path for path in paths) is (unit != "residual_pair")
    assert torch.equal(output(model, PIXELS), expected)


def test_a_model_that_grew_in_width_only_is_quantised_as_any_other():
    model = build(SaddleViTModel, {0: {"intermediate_size": 50}})
    expected = output(model, PIXELS)
    for site in list(model.growable_linears()):
        swap(model, site.path)
    assert torch.equal(output(model, PIXELS), expected)
    model.load_state_dict(model.state_dict())
    for refused in (model.shapes, model.check_linears, lambda: list(model.growable_linears())):
        with pytest.raises(ValueError, match="layers.0.attention.q_proj is a Quantised.*quantisers"):
            refused()


def test_growth_and_merges_are_followed():
    model = build(SaddleViTModel)
    output(model, PIXELS)
    path = "layers.1.mlp.fc2"
    grow_(model, GrowthPlan((LayerGrowth.by_hand(model, path, "residual_pair", neurons=[1, 2]),)))
    output(model, PIXELS)
    merge_pairs_(model)
    expected = output(model, PIXELS)
    swap(model, f"{path}.skip.linear")
    assert torch.equal(output(model, PIXELS), expected)
    swap(model, path)
    with pytest.raises(ValueError, match=NOTICED):
        output(model, PIXELS)


def test_a_growth_is_expected_at_once():
    model = build(SaddleViTModel)
    output(model, PIXELS)
    grow_(model, GrowthPlan((LayerGrowth.by_hand(model, "layers.0.mlp.fc1", "zero_gain", neurons=[1]),)))
    swap(model, "layers.0.mlp.fc1")
    with pytest.raises(ValueError, match=NOTICED):
        output(model, PIXELS)


def test_loading_another_shape_is_followed():
    model, grown = build(), build(grown=GROWN)
    output(model, PIXELS)
    model.load_state_dict(grown.state_dict())
    assert torch.equal(output(model, PIXELS), output(grown, PIXELS))
    model.load_state_dict(build().state_dict())
    assert torch.equal(output(model, PIXELS), output(build(), PIXELS))


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("before", [True, False], ids=["ran-before", "never-ran"])
def test_a_copy_is_checked_by_itself(copied, before):
    model = build(grown=GROWN)
    expected = output(model, PIXELS) if before else output(build(grown=GROWN), PIXELS)
    twin = copied(model)
    swap(twin.deit, "layers.0.mlp.fc1")
    assert torch.equal(output(model, PIXELS), expected)
    with pytest.raises(ValueError, match=NOTICED):
        output(twin, PIXELS)
    whole = copied(model)
    swap(model.deit, "layers.0.mlp.fc1")
    assert torch.equal(output(whole, PIXELS), expected)


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Wrapper(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear

    def forward(self, x):
        return self.base_layer(x)


@pytest.mark.parametrize("make", [Wrapper, checkpoint_wrapper, lambda linear: Wrapper(Wrapper(linear))])
@pytest.mark.parametrize("before", [True, False], ids=["ran-before", "never-ran"])
def test_wrappers_that_keep_the_branch_pass_until_what_they_hold_is_swapped(make, before):
    model = build(SaddleViTModel, EVERYWHERE)
    expected = output(build(SaddleViTModel, EVERYWHERE), PIXELS)
    if before:
        output(model, PIXELS)
    for path in reversed(PATHS):
        swap(model, path, make=make)
    assert torch.equal(output(model, PIXELS), expected)
    held = next(name for name, module in model.named_modules() if isinstance(module, GrowableLinear))
    swap(model, held)
    with pytest.raises(ValueError, match=NOTICED):
        output(model, PIXELS)


def test_parametrisations_and_hooks_pass():
    model = build(SaddleViTModel, GROWN)
    expected = output(model, PIXELS)
    fc1 = model.layers[0].mlp.fc1
    handle = fc1.register_forward_hook(lambda module, args, out: out + 1)
    parametrize.register_parametrization(fc1, "weight", Double())
    assert not torch.equal(output(model, PIXELS), expected)
    handle.remove()
    parametrize.remove_parametrizations(fc1, "weight", leave_parametrized=False)
    assert torch.equal(output(model, PIXELS), expected)


@every_growth
@pytest.mark.parametrize("whole", [True, False], ids=["classifier", "encoder"])
def test_a_compiled_model_notices_too(grown, whole):
    torch.compiler.reset()
    model = build(SaddleDeiTForImageClassification, grown)
    module = model if whole else model.deit
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = compiled(PIXELS, return_dict=False)[0]
    assert torch.equal(expected, output(module, PIXELS))
    swap(model.deit, "layers.0.mlp.fc1", by_dictionary)
    if grown is None:
        assert torch.equal(output(compiled, PIXELS), expected)
    else:
        with pytest.raises(Exception, match=NOTICED):
            output(compiled, PIXELS)


def test_an_exported_model_computes_the_same_and_a_swapped_one_is_not_exported():
    model = build(grown=GROWN)
    program = torch.export.export(model, (PIXELS,), {"return_dict": False})
    assert torch.equal(program.module()(PIXELS, return_dict=False)[0], output(model, PIXELS))
    swap(model.deit, "layers.0.mlp.fc1")
    with pytest.raises(ValueError, match=NOTICED):
        torch.export.export(model, (PIXELS,), {"return_dict": False})


def test_a_config_that_another_model_shares_is_named():
    model = build(SaddleViTModel)
    other = SaddleViTModel(model.config)
    grow_(other, GrowthPlan((LayerGrowth.by_hand(other, "layers.0.mlp.fc1", "zero_gain", neurons=[1]),)))
    with pytest.raises(ValueError, match="shares this config object.*own copy"):
        output(model, PIXELS)
