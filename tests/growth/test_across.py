"""Neurons, heads and blocks in one plan: atomic, exact where that is promised, chosen by what other samples gain."""

import copy
import json
from dataclasses import dataclass, replace

import pytest
import torch
from family_cases import CASES, answers, family_model, inputs
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
from hf_saddle.growth.choice import timing as timing_module
from hf_saddle.growth.choice.across import Across
from hf_saddle.growth.choice.joint import Columns, judge
from hf_saddle.growth.choice.parts import Part
from hf_saddle.growth.choice.timing import Kind, time_kinds
from hf_saddle.growth.costs import Cost
from hf_saddle.growth.records.timing_record import Timing
from hf_saddle.models.blocks import block_paths


# Pre-norm families with heads and blocks, each of another kind of attention.
MIXED = ("GPT2LMHeadModel", "LlamaForCausalLM", "SwinForImageClassification", "Dinov2ForImageClassification")


def silent_plan(model, name):
    """Units at rest and a new head in the last block, and a copy before it: the model computes what it did."""
    *_, before, _ = block_paths(model.base_model, model.config)
    number = 2 if CASES[name][0] == "swin" else 1  # of a Swin blocks alternate
    last = next(site for site in reversed(list(model.growable_linears())) if not site.nested)
    heads = list(model.attentions())[-1]
    units = LayerGrowth.by_hand(model, last.path, "zero_gain", [0, 1])
    return GrowthPlan(
        (units, head_growth(model, heads.path, 1, "new")), blocks=(NewBlock(before, "copy"),) * number, seed=3
    )


@pytest.mark.parametrize("name", MIXED)
def test_a_plan_of_all_kinds_is_one_event_that_changes_nothing(name):
    model = block_model(name)
    before, twin = answers(model, name), copy.deepcopy(model)
    plan = silent_plan(model, name)
    optimizer = torch.optim.AdamW(model.named_parameters())
    size, macs = count_parameters(model), count_macs(model)
    event = grow_(model, GrowthPlan.from_json(plan.to_json()), optimizer)
    assert torch.equal(answers(model, name), before)
    assert event.operators == sorted(["zero_gain", "new_head", "block_copy"])
    assert (event.neurons, event.heads, len(event.blocks)) == (2, 1, len(plan.blocks))
    assert event.parameters_after - event.parameters_before == count_parameters(model) - size
    assert event.macs_after - event.macs_before == count_macs(model) - macs
    # What grew behind the new block is recorded where it is now.
    moved = {layer["linear"] for layer in event.layers}
    assert moved.isdisjoint({growth.linear for growth in plan.growths})
    assert all(model.get_submodule(path) is not None for path in moved)
    # The optimizer trains what the model has, in its order.
    (group,) = optimizer.param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in model.parameters()]
    assert group["param_names"] == [key for key, _ in model.named_parameters()]
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


# -------------------------------------------------------------------------------------------------------------- choice
@dataclass(frozen=True)
class Thing:
    """A candidate of a price."""

    operator: str
    number: int
    price: int = 1
    place: str = "mlp"

    opens = None

    @property
    def once(self):
        return self.operator, self.number

    def cost(self, book):
        return Cost(self.price, self.price)

    def book_(self, book):
        pass


def part(name, values, judges, prices=None):
    """Candidates of one kind with scores."""
    prices = prices or [1] * values.shape[1]
    things = tuple(Thing(name, number, price) for number, price in enumerate(prices))
    return Part(things, Columns.unbounded(values, judges), {name: len(things)})


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


JUDGES = torch.arange(400) % 2 == 1


def gain_of(values):
    """What a natural step fitted to the first samples gains on the others, by the normal equations."""
    fitted, other = values[~JUDGES], values[JUDGES]
    fisher = fitted.T @ fitted / len(fitted)
    damped = fisher + 0.3 * fisher.diagonal().mean() * torch.eye(len(fisher), dtype=fisher.dtype)
    change = other @ (-0.5 * torch.linalg.solve(damped, fitted.mean(0)))
    return -float((change + 0.5 * change.square()).mean())


def choice(parts, allowed=3.0, **fields):
    config = GrowthConfig(operator="any", max_growth=None, event_budget=allowed, significance=0.0, **fields)
    return Across(parts, None, family_model("LlamaForCausalLM"), config).choose(allowed)


def test_the_kinds_that_other_samples_gain_by_are_chosen_whatever_their_scale():
    good, idle = noise(0, 400, 3) + 0.5, noise(1, 400, 3)
    for scale in (1e-4, 1.0, 1e4):
        # A kind of large scores that says nothing does not drown one of small scores, nor the other way round.
        chosen = choice([part("one", good, JUDGES), part("other", scale * idle, JUDGES)])
        assert {member.operator for member in chosen.members} == {"one"}
    # Kinds that complement each other come together, and gain more than either alone.
    chosen = choice([part("one", good[:, :1], JUDGES), part("other", 100 * good[:, 1:2], JUDGES)])
    assert [member.operator for member in chosen.members] in (["one", "other"], ["other", "one"])
    found = judge(chosen.columns, 0.5).gain
    assert found == pytest.approx(gain_of(good[:, :2] / good[~JUDGES][:, :2].square().mean(0).sqrt()))
    assert found > max(gain_of(good[:, :1]), gain_of(good[:, 1:2]))


def test_a_kind_that_fits_the_choosing_samples_only_crowds_out_nothing():
    good, fooled = noise(0, 400, 2) + 0.3, noise(1, 400, 3)
    fooled[~JUDGES] += 2.0  # what choosing samples promise, and judging ones do not keep
    chosen = choice([part("honest", good, JUDGES), part("fooled", fooled, JUDGES)], allowed=2.0)
    assert {member.operator for member in chosen.members} == {"honest"}


def test_the_same_gain_is_taken_where_it_is_cheaper():
    column = noise(0, 400, 1) + 0.5
    twins = [part("dear", column, JUDGES, [3]), part("cheap", column.clone(), JUDGES, [2])]
    assert [member.operator for member in choice(twins).members] == ["cheap"]
    none = choice(twins, allowed=1.0)
    assert none.members == () and none.held_back.startswith("Budget: there are candidates (1 by dear, 1 by cheap)")
    fooled = torch.where(JUDGES[:, None], 1.0, -1.0) * noise(3, 400, 1).abs()
    nothing = choice([part("idle", fooled, JUDGES)])
    assert nothing.members == () and nothing.held_back.startswith("Held-out samples: of candidates (1 by idle)")


# ------------------------------------------------------------------------------------------------------------- seconds
def test_each_kind_is_timed_once_and_the_model_stays(monkeypatch):
    model = family_model("LlamaForCausalLM")
    before, fields = {key: value.clone() for key, value in model.state_dict().items()}, model.config.to_dict()
    head = next(iter(model.attentions()))
    kinds = {
        "new_head": Kind(GrowthPlan((head_growth(model, head.path, 1, "new"),))),
        "block_copy": Kind(GrowthPlan(blocks=(NewBlock("layers.0", "copy"),))),
    }

    def loss(model, batch):
        return model(**batch).logits.square().mean()

    found = time_kinds(model, inputs("LlamaForCausalLM"), loss, kinds)
    assert found.rates.keys() == kinds.keys() and found.added == 0
    assert min(found.rates.values()) >= found.step / count_macs(model) > 0
    assert model.config.to_dict() == fields and model.growth_history is None
    assert all(torch.equal(x, before[key]) and x.grad is None for key, x in model.state_dict(keep_vars=True).items())
    # What is known stays; a slow kind is priced by what it takes.
    monkeypatch.setattr(timing_module, "_ENOUGH", 0.0)
    clock = iter([1.0] + [1.0, 3.0] * 5)
    monkeypatch.setattr(timing_module, "_seconds", lambda *args: next(clock))
    known, block = replace(found, rates={"new_head": 7.0}), kinds["block_copy"]
    again = time_kinds(model, inputs("LlamaForCausalLM"), loss, {"block_copy": block}, known)
    added = grow_(copy.deepcopy(model), block.much)
    assert again.step == found.step and again.rates["new_head"] == 7.0
    assert again.rates["block_copy"] == pytest.approx(2.0 / (added.macs_after - added.macs_before))
    assert time_kinds(model, None, loss, {}, again) is again
    # Of units a part of the time is that of the calls of branches, of which there is one for each layer.
    paths = [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)]
    many, few = (
        GrowthPlan(tuple(LayerGrowth.by_hand(model, path, "zero_gain", range(count)) for path in paths))
        for count in (8, 1)
    )
    macs = [event.macs_after - event.macs_before for event in (grow_(copy.deepcopy(model), p) for p in (many, few))]
    clock = iter([0.1] + [1.0, 3.0 + 1e-3 * macs[0]] * 5 + [1.0, 3.0 + 1e-3 * macs[1]] * 5)
    units = time_kinds(model, None, loss, {"zero_gain": Kind(many, few)})
    assert units.rates == {"zero_gain": pytest.approx(1e-3)}
    assert units.calls == {"zero_gain": pytest.approx(1.0)} and units.step == 0.1
    assert Timing.from_dict(json.loads(json.dumps(again.to_dict()))) == again


@pytest.mark.parametrize(
    "change", [{"step": 0.0}, {"added": -1.0}, {"rates": {"split": "dear"}}, {"more": 1}], ids=str
)
def test_a_damaged_timing_is_refused(change):
    with pytest.raises(ValueError, match="`timing"):
        Timing.from_dict(Timing(1.0, 0.0, {"split mlp.fc1": 1.0}).to_dict() | change)
