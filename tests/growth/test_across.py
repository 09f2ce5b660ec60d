"""Neurons, heads and blocks in one plan: atomic, exact where that is promised, and chosen by what other samples gain."""

import copy
import json

import pytest
import torch
from family_cases import CASES, answers, family_model
from test_blocks import block_model

from hf_saddle.growth import (
    GrowthConfig,
    GrowthEvent,
    GrowthHistory,
    GrowthPlan,
    LayerGrowth,
    NewBlock,
    count_macs,
    count_parameters,
    grow_,
    head_growth,
)
from hf_saddle.models.blocks import block_paths


# Pre-norm families with heads and blocks, each of another kind of attention.
MIXED = ("GPT2LMHeadModel", "LlamaForCausalLM", "SwinForImageClassification", "Dinov2ForImageClassification")


def silent_plan(model, name):
    """Units at rest, a new head and a copy: nothing of them changes what the model computes."""
    paths = block_paths(model.base_model, model.config)
    number = 2 if CASES[name][0] == "swin" else 1  # of a Swin blocks alternate
    last = next(site for site in reversed(list(model.growable_linears())) if not site.nested)
    heads = list(model.attentions())[-1]
    units = LayerGrowth.by_hand(model, last.path, "zero_gain", [0, 1])
    return GrowthPlan(
        (units, head_growth(model, heads.path, 1, "new")), blocks=(NewBlock(paths[0], "copy"),) * number, seed=3
    )


@pytest.mark.parametrize("name", MIXED)
def test_a_plan_of_all_kinds_is_one_event_that_changes_nothing(name):
    model = family_model(name)
    before, twin = answers(model, name), copy.deepcopy(model)
    plan = silent_plan(model, name)
    optimizer = torch.optim.AdamW(model.parameters())
    size, macs = count_parameters(model), count_macs(model)
    event = grow_(model, GrowthPlan.from_json(plan.to_json()), optimizer)
    torch.testing.assert_close(answers(model, name), before, rtol=2e-6, atol=2e-6)
    assert event.operators == sorted(["zero_gain", "new_head", "block_copy"])
    assert (event.neurons, event.heads, len(event.blocks)) == (2, 1, len(plan.blocks))
    assert event.parameters_after - event.parameters_before == count_parameters(model) - size
    assert event.macs_after - event.macs_before == count_macs(model) - macs
    # What grew behind the new block is recorded where it is now.
    moved = {layer["linear"] for layer in event.layers}
    assert moved.isdisjoint({growth.linear for growth in plan.growths})
    assert all(model.get_submodule(path) is not None for path in moved)
    # The optimizer trains what the model has, in its order.
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in model.parameters()]
    # The history replays, survives as text, and a second model grows in the same way.
    history = GrowthHistory.from_dict(json.loads(json.dumps(model.growth_history)))
    history.check(model)
    assert history.apply(copy.deepcopy(twin.config)).to_dict() == model.config.to_dict()
    grow_(twin, plan)
    assert all(torch.equal(x, twin.state_dict()[key]) for key, x in model.state_dict().items())
    assert GrowthEvent.from_dict(event.to_dict()) == event


def test_parts_one_after_the_other_make_the_same_model():
    name = "LlamaForCausalLM"
    model = block_model(name)
    plan, twin = silent_plan(model, name), copy.deepcopy(model)
    grow_(model, plan)
    # The copies are of blocks before they grow, so blocks come first; the rest is named by its new place.
    grow_(twin, GrowthPlan(blocks=plan.blocks, seed=3))
    paths = [growth.linear.replace("layers.1", "layers.2") for growth in plan.growths]
    units = LayerGrowth.by_hand(twin, paths[0], "zero_gain", [0, 1])
    grow_(twin, GrowthPlan((units, head_growth(twin, paths[1], 1, "new"))))
    assert all(torch.equal(x, twin.state_dict()[key]) for key, x in model.state_dict().items())


def test_what_cannot_grow_leaves_all_kinds_as_they_are():
    name = "LlamaForCausalLM"
    model = family_model(name)
    before, plan = copy.deepcopy(model.state_dict()), silent_plan(model, name)
    fields = model.config.to_dict()
    bad = GrowthPlan(plan.growths, blocks=(NewBlock("layers.7", "copy"),))
    with pytest.raises(ValueError, match=r"no block 'layers\.7'"):
        grow_(model, bad)
    strange = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(ValueError, match="does not hold"):
        grow_(model, plan, strange)
    with pytest.raises(ValueError, match="`freeze`"):
        GrowthPlan(plan.growths, blocks=plan.blocks, freeze=True)
    assert model.growth_history is None and model.config.to_dict() == fields
    assert all(torch.equal(x, model.state_dict()[key]) for key, x in before.items())


# ------------------------------------------------------------------------------------------------------------- options
KINDS = {
    "any": ("any", ("auto",), ("new_head", "split_head"), "copy"),
    "list": (["split", "zero_gain", "new_head", "block_identity"], ("split", "zero_gain"), ("new_head",), "identity"),
    "heads": (["split_head"], (), ("split_head",), None),
    "one": ("split", ("split",), (), None),
}


@pytest.mark.parametrize("case", KINDS)
def test_names_say_what_grows(case):
    operator, neurons, heads, blocks = KINDS[case]
    config = GrowthConfig(operator=operator)
    kinds = config.kinds
    assert (kinds.neurons, kinds.heads, kinds.blocks) == (neurons, heads, blocks)
    assert kinds.named == (case != "any") and kinds.several == (case != "one")
    assert GrowthConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    if case == "heads":
        assert config.operator == "split_head" and config.judged


WRONG = {
    "unknown": ({"operator": ["split", "grow"]}, "`operator` must be one of"),
    "twice": ({"operator": ["split", "split"]}, "names one twice"),
    "any": ({"operator": ["any", "split"]}, "'any' stands for all"),
    "auto": ({"operator": ["auto", "split"]}, "'auto' stands for all operators of neurons"),
    "two": ({"operator": ["block_copy", "block_identity"]}, "two ways for the same"),
    "widths": ({"operator": ["split", "net2net", "new_head"]}, "two ways for the same"),
    "selection": ({"operator": "any", "selection": "gain"}, "by curvature and pursuit"),
    "control": ({"operator": "any", "criterion": "random"}, "by curvature and pursuit"),
    "pairs": ({"operator": ["residual_pair", "new_head"]}, "by curvature and pursuit"),
    "linears": ({"operator": ["new_head", "block_copy"], "linears": ["mlp.fc1"]}, "no neurons grow"),
    "freeze": ({"operator": "any", "freeze": True}, "freeze=True"),
    "seconds": ({"budget_unit": "seconds", "max_macs": 2e6}, "`budget_unit='seconds'` counts no"),
    "gain": ({"budget_unit": "seconds", "selection": "gain"}, "`budget_unit='seconds'` chooses"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_refused(case):
    fields, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        GrowthConfig(**fields)
