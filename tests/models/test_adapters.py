"""Adapters of PEFT on growable models: exact with branches, saved, loaded and merged; what cannot be is refused."""

import copy
import inspect
from collections.abc import Callable

import peft
import pytest
import torch
from model_cases import (
    GROWN,
    branched,
    build,
    every_classifier,
    every_growth,
    every_unit,
    output,
    randomize_,
)
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from hf_saddle.growth import GrowthHistory, GrowthPlan, LayerGrowth, grow_, merge_pairs_
from hf_saddle.models import GrowableLinear, PairedLinear, SaddleViTForImageClassification
from hf_saddle.models.branch_guard import ADDITIVE_TUNERS, check_wrapper
from hf_saddle.training.checks.model_checks import check_growable


PIXELS = torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(0))
NAMED = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
LINEARS, BRANCHES = {"target_modules": NAMED}, {"target_modules": ["skip.linear"]}
# PEFT merges no adapter inside of another, so that a branch and its linear cannot both have one.
ALL = {"target_modules": "all-linear", "exclude_modules": ["skip.linear"]}
every_target = pytest.mark.parametrize("targets", [LINEARS, ALL, BRANCHES], ids=["named", "all-linear", "branches"])
# GROWN without nested branches.
FLAT = {
    layer: {**shapes, "skip_sizes": {name: sizes[:1] for name, sizes in shapes["skip_sizes"].items()}}
    for layer, shapes in GROWN.items()
}


def noise_(model: nn.Module, seed: int = 1) -> None:
    """Move every trainable parameter, so that no adapter is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def adapted(model, **config):
    wrapped = get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": NAMED} | config)).eval()
    noise_(wrapped)
    return wrapped


def grown_by_hand(model_class=SaddleViTForImageClassification):
    """A model with a history: two units for the first fc1, by `grow_`."""
    model = build(model_class)
    path = f"{model.base_model_prefix}.layers.0.mlp.fc1"
    grow_(model, GrowthPlan((LayerGrowth.by_hand(model, path, "zero_gain", neurons=[3, 5]),)))
    randomize_(model)
    return model


@every_classifier
@pytest.mark.parametrize(
    "grown, targets",
    [(None, LINEARS), (None, {"target_modules": "all-linear"}), (GROWN, LINEARS), (GROWN, ALL), (FLAT, BRANCHES)],
    ids=["ungrown", "ungrown-all", "grown", "grown-all", "branches"],
)
def test_adapters_are_loaded_onto_a_freshly_loaded_model(tmp_path, model_class, grown, targets):
    model = build(model_class, grown)
    model.save_pretrained(tmp_path / "base")
    plain = output(model, PIXELS)
    wrapped = adapted(model, **targets, modules_to_save=["classifier"])
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = output(wrapped, PIXELS)
    assert not torch.equal(expected, plain)
    loaded = PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    assert torch.equal(output(loaded, PIXELS), expected)


@pytest.mark.parametrize("targets", [["fc1", "skip.linear"], ["skip.linear"], "all-linear"], ids=str)
def test_an_adapter_in_the_branch_of_an_adapted_linear_is_refused(targets):
    with pytest.raises(ValueError, match=r"exclude_modules=\[.skip.linear.\]"):
        get_peft_model(build(grown=GROWN), LoraConfig(target_modules=targets))


@every_unit
@every_target
def test_what_is_merged_computes_the_same_and_is_growable(tmp_path, unit, targets):
    model = build(grown=FLAT, skip_unit=unit).double()
    names = set(model.state_dict())
    wrapped = adapted(model, **targets)
    expected = output(wrapped, PIXELS.double())
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(output(merged, PIXELS.double()), expected, rtol=1e-12, atol=1e-12)
    assert type(merged) is type(model)
    assert set(merged.state_dict()) == names
    merged.check_linears()
    merged.save_pretrained(tmp_path)
    loaded = type(merged).from_pretrained(tmp_path, dtype=torch.float64).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in merged.state_dict().items())


def test_a_merged_model_has_its_history_and_grows(tmp_path):
    model = grown_by_hand()
    merged = adapted(model, **ALL).merge_and_unload()
    before = output(merged, PIXELS)
    grow_(merged, GrowthPlan((LayerGrowth.by_hand(merged, "vit.layers.1.mlp.fc2", "zero_gain", neurons=[1]),)))
    assert torch.equal(output(merged, PIXELS), before)
    GrowthHistory.from_model(merged).check(merged)
    merged.save_pretrained(tmp_path)
    loaded = type(merged).from_pretrained(tmp_path)
    assert len(GrowthHistory.from_model(loaded)) == 2
    assert torch.equal(output(loaded, PIXELS), before)


@every_growth
def test_the_shapes_are_seen_through_the_adapters(grown):
    model = build(grown=grown)
    shapes, paths = model.shapes(), [site.path for site in model.growable_linears()]
    inner = adapted(model, **ALL).get_base_model()
    assert inner.shapes() == shapes
    assert [site.path for site in inner.growable_linears()] == paths
    assert all(isinstance(site.module, GrowableLinear) for site in inner.growable_linears())


@every_growth
def test_the_integration_of_transformers(tmp_path, grown):
    model = build(SaddleViTForImageClassification, grown)
    model.save_pretrained(tmp_path / "base")
    model = SaddleViTForImageClassification.from_pretrained(tmp_path / "base")
    model.add_adapter(LoraConfig(r=2, target_modules=NAMED))
    noise_(model)
    expected = output(model, PIXELS)
    model.save_pretrained(tmp_path / "adapter")
    for source in (tmp_path / "base", None):
        if source is not None:
            loaded = SaddleViTForImageClassification.from_pretrained(source)
            loaded.load_adapter(str(tmp_path / "adapter"))
        else:
            loaded = SaddleViTForImageClassification.from_pretrained(tmp_path / "adapter")
        assert torch.equal(output(loaded.eval(), PIXELS), expected)
    model.delete_adapter("default")


def test_an_adapter_folder_brings_the_history_of_its_base(tmp_path):
    model = grown_by_hand()
    model.save_pretrained(tmp_path / "base")
    base = SaddleViTForImageClassification.from_pretrained(tmp_path / "base")
    adapted(base).save_pretrained(tmp_path / "adapter")
    loaded = SaddleViTForImageClassification.from_pretrained(tmp_path / "adapter")
    assert loaded.growth_history == model.growth_history


def test_a_full_state_of_a_model_with_adapters_keeps_its_branches():
    """What Accelerate's `load_state` and a Trainer's checkpoint of a model with `add_adapter` do."""
    wrapped, other = (adapted(build(grown=GROWN, seed=seed), target_modules=["q_proj"]) for seed in (0, 1))
    expected = output(wrapped, PIXELS)
    other.load_state_dict(wrapped.state_dict())
    assert torch.equal(output(other, PIXELS), expected)


@pytest.mark.parametrize("targets", [["q_proj"], ["fc2"], ["fc1.skip.linear"]])
@pytest.mark.parametrize("grown", [None, {0: {"intermediate_size": 50}}, {0: {"skip_sizes": {"mlp.fc1": [2]}}}])
def test_a_state_of_other_shapes_is_refused_under_adapters(targets, grown):
    model = adapted(build(grown=GROWN), target_modules=targets)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="asks? for|lacks"):
        model.get_base_model().load_state_dict(build(grown=grown).state_dict(), strict=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Single(nn.Module):
    """A model of one linear."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.only = linear

    def forward(self, x):
        return self.only(x)


def tuned(linear: nn.Module, method: str, **fields) -> PeftModel:
    """A tuner of PEFT on one linear, moved away from the identity."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()]
    sizes = {"r": 2, "boft_block_size": 4, "n_frequency": 10, "block_size": 4, "total_step": 10, "group_size": 4}
    known = inspect.signature(config).parameters
    fields = {name: value for name, value in sizes.items() if name in known} | fields
    torch.manual_seed(1)
    model = get_peft_model(Single(copy.deepcopy(linear)), config(target_modules=["only"], **fields))
    noise_(model)
    return model


def branched_linear() -> tuple[nn.Module, Callable]:
    """A linear with a branch, and what the branch adds."""
    linear = branched(GrowableLinear(8, 8), [3])
    randomize_(linear)
    branch = copy.deepcopy(linear.skip)
    return linear, lambda x: torch.zeros_like(x).index_add_(-1, branch.target, branch(x))


def paired_linear() -> tuple[nn.Module, Callable]:
    """A linear of paired rows, and what the second rows add."""
    linear = PairedLinear(8, 8)
    randomize_(linear)
    weight, bias = (parameter.detach().clone() for parameter in (linear.twin_weight, linear.twin_bias))
    return linear, lambda x: nn.functional.linear(x, weight, bias)


@pytest.mark.parametrize("make", [branched_linear, paired_linear])
@pytest.mark.parametrize("method", sorted(name.split(".")[2] for name in ADDITIVE_TUNERS))
def test_tuners_that_are_allowed_leave_a_branch_as_it_is(make, method):
    """The sum of what they make of a plain linear, and of what the branch or the second row adds, merged too."""
    torch.manual_seed(0)
    linear, extra = make()
    plain = nn.Linear(8, 8)
    plain.load_state_dict({name: linear.state_dict()[name] for name in ("weight", "bias")})
    ours, theirs = tuned(linear, method), tuned(plain, method)
    wrapper = ours.base_model.model.only
    check_wrapper(wrapper, wrapper.get_base_layer(), "only")
    x = torch.randn(5, 4, 8)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        with torch.random.fork_rng():
            found = ours(x)
        torch.testing.assert_close(found, theirs(x) + extra(x), rtol=1e-5, atol=1e-5)
    assert (theirs(x) - plain(x)).abs().max() > 1e-2
    if method != "lily":  # which PEFT does not merge
        torch.testing.assert_close(ours.merge_and_unload()(x), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "lora", "use_dora": True},
        {"method": "ia3", "feedforward_modules": []},
        {"method": "ia3", "feedforward_modules": ["only"]},
        {"method": "oft", "r": 0, "oft_block_size": 4},
        {"method": "boft"},
        {"method": "hra"},
        {"method": "shira"},
        {"method": "frod"},
        {"method": "deft"},
        {"method": "road"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
@pytest.mark.parametrize("make", [branched_linear, paired_linear])
def test_other_tuners_are_refused_where_there_is_a_branch(make, fields):
    wrapper = tuned(make()[0], **fields).base_model.model.only
    with pytest.raises(ValueError, match="`only` has a skip branch.*LoRA without `use_dora`"):
        check_wrapper(wrapper, wrapper.get_base_layer(), "only")


@pytest.mark.parametrize(
    "config", [LoraConfig(use_dora=True), peft.IA3Config(feedforward_modules=[])], ids=["dora", "ia3"]
)
def test_a_tuner_that_would_change_a_branch_is_refused_before_the_first_step(tmp_path, config):
    config.target_modules = ["fc1"]
    model = get_peft_model(build(grown=GROWN), config)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.fc1.*`target_modules`"):
        model(PIXELS)
    plain = build(grown=GROWN)
    plain.save_pretrained(tmp_path / "base")
    config.target_modules = ["layers.1.mlp.fc1", "layers.0.mlp.fc2"]
    wrapped = get_peft_model(plain, config).eval()
    noise_(wrapped)
    expected = output(wrapped, PIXELS)
    wrapped.save_pretrained(tmp_path / "adapter")
    base = type(plain).from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(output(loaded, PIXELS), expected)
    torch.testing.assert_close(output(loaded.merge_and_unload(), PIXELS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["grow", "merge", "callback"])
def test_a_model_with_adapters_is_not_changed(change):
    unit = "residual_pair" if change == "merge" else "gain"
    model = adapted(build(grown=FLAT, skip_unit=unit), target_modules=["fc2"]).get_base_model()
    growth = LayerGrowth.by_hand(model, "deit.layers.0.mlp.fc1", "zero_gain", neurons=[0])
    before = copy.deepcopy(model.state_dict())
    act = {
        "grow": lambda: grow_(model, GrowthPlan((growth,))),
        "merge": lambda: merge_pairs_(model),
        "callback": lambda: check_growable(model),
    }[change]
    with pytest.raises(ValueError, match="layers.0.mlp.fc2.*merge_and_unload"):
        act()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_second_adapter_is_checked_too():
    model = adapted(build(grown=GROWN), target_modules=["fc1"])
    output(model, PIXELS)
    model.add_adapter("second", LoraConfig(target_modules=["fc1"]))
    output(model, PIXELS)
    model.add_adapter("third", LoraConfig(target_modules=["fc1"], use_dora=True))
    with pytest.raises(ValueError, match="DoraLinearLayer"):
        output(model, PIXELS)
