"""What blocks would gain is measured as the definition says, leaves no trace, and decides what is planned."""

import copy
from dataclasses import replace

import pytest
import torch
from family_cases import answers, exact_norms_, family_model, inputs, loss_of
from test_blocks import STAGES, block_model, block_paths, tensors

from hf_saddle.growth import GrowthConfig, block_candidates, grow_, insert_blocks_, plan_blocks
from hf_saddle.growth.choice.joint import RIDGE, held_out_gain
from hf_saddle.models.families import blocks_in


# Behind the ReLU of a ResNet, which is at its kink wherever it has answered 0, the two sides have other slopes.
NAMES = (
    "GPT2LMHeadModel",
    "Gemma3ForCausalLM",
    "SwinForImageClassification",
    "ConvNextForImageClassification",
    "T5ForConditionalGeneration",
    "Dinov2ForImageClassification",
)
LLAMA = "LlamaForCausalLM"


def double(batch):
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def answer_loss(model, batch):
    """A loss that is a mean over samples, each with weights of its own."""
    found = model(**batch)
    answer = found.get("logits", found.get("last_hidden_state")).flatten(1).double()
    weights = torch.randn(answer.shape[1], generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return (answer.tanh() @ weights).square().mean()


def repeated(name, model, times=2):
    return [{key: torch.cat([value] * times) for key, value in double(inputs(name)).items()} for _ in range(times)]


@torch.no_grad()
def opened(model, name, candidate, output, amount):
    """A twin with plain copies whose outputs are scaled: one of one block by an amount, all others by 0."""
    twin = copy.deepcopy(model)
    paths = block_paths(twin.base_model, twin.config)
    insert_blocks_(twin, [paths.index(candidate.after)] * candidate.number, "stack")
    stack, _, index = candidate.after.rpartition(".")
    kind = dict(blocks_in(twin.base_model, twin.config))[candidate.after]
    silence = -1.0 if "Gemma" in name else 0.0
    for number in range(candidate.number):
        block = twin.base_model.get_submodule(f"{stack}.{int(index) + 1 + number}")
        for place, own in enumerate(kind.outputs):
            scale = amount if number * len(kind.outputs) + place == output else 0.0
            for named, parameter in block.named_parameters():
                if named == own or named.startswith(f"{own}."):
                    parameter.sub_(silence).mul_(scale).add_(silence)
    return twin


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_slopes_of_each_sample_s_loss_in_the_gates(name, monkeypatch):
    exact_norms_(monkeypatch)
    model = block_model(name, torch.float64)
    batches = repeated(name, model)
    size = len(next(iter(batches[0].values())))
    for candidate in block_candidates(model, batches, loss=answer_loss):
        sample = {key: value[1:2] for key, value in batches[0].items()}
        assert candidate.scores.shape == (2 * size, candidate.scores.shape[1])
        for output in range(candidate.scores.shape[1]):
            up, down = (
                float(answer_loss(opened(model, name, candidate, output, amount), sample)) for amount in (1e-4, -1e-4)
            )
            score = float(candidate.scores[1, output])
            assert (up - down) / 2e-4 == pytest.approx(score, rel=1e-4, abs=1e-9)


def test_measuring_leaves_no_trace():
    model = block_model(LLAMA).train()
    before, modules, state = tensors(model), list(model.modules()), torch.get_rng_state()
    fields, answer = copy.deepcopy(model.config.to_dict()), answers(model, LLAMA)
    with pytest.raises(ValueError, match="not finite|is nan"):
        block_candidates(model, [inputs(LLAMA)] * 2, loss=lambda m, b: m(**b).logits.sum() * torch.nan)
    found = block_candidates(model, [inputs(LLAMA)] * 2, loss=lambda m, b: m(**b).logits.square().mean())
    assert [candidate.after for candidate in found] == ["layers.0", "layers.1"]
    assert list(model.modules()) == modules and model.config.to_dict() == fields
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(answers(model, LLAMA), answer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in modules) and model.training


def test_the_gain_is_that_of_a_step_fitted_to_other_samples():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.5, -0.2, 0.0])
    fitted, others = scores[::2], scores[1::2]
    fisher = sum(torch.outer(row, row) for row in fitted) / 20
    damped = fisher + RIDGE * fisher.diagonal().mean() * torch.eye(3, dtype=torch.float64)
    step = -damped.inverse() @ fitted.mean(0)
    wanted = -sum(float(row @ step + 0.5 * (row @ step) ** 2) for row in others) / 20
    assert held_out_gain(scores) == pytest.approx(wanted)
    # What says the same twice gains no more than once; what says nothing gains nothing.
    assert held_out_gain(torch.zeros(8, 2)) == 0
    assert held_out_gain(torch.cat([scores] * 2, 1)) < 1.3 * held_out_gain(scores)


def candidates(model):
    batches = repeated(LLAMA, model, 4)
    return block_candidates(model, batches, loss=answer_loss)


@pytest.mark.parametrize("how", ["copy", "identity"])
def test_plans_take_what_gains_most_within_the_budget(how):
    model = block_model(LLAMA, torch.float64)
    found = candidates(model)
    best = max(found, key=lambda each: each.gain)
    assert best.gain > 0
    price = best.cost.parameters
    config = GrowthConfig(operator=f"block_{how}", max_growth=None, event_budget=1.5 * price, freeze=True)
    plan = plan_blocks(found, model, config)
    assert [(block.after, block.how) for block in plan.blocks] == [(best.after, how)]
    assert plan.predicted_gain == pytest.approx(best.gain)
    size = sum(parameter.numel() for parameter in model.parameters())
    event = grow_(model, plan)
    assert event.parameters_after - size == plan.parameters == price and event.macs_after > event.macs_before
    assert event.macs_after - event.macs_before == plan.macs and event.frozen
    empty = plan_blocks(found, model, GrowthConfig(operator="block_copy", max_growth=None, event_budget=price - 1))
    assert not empty and empty.held_back.startswith("Budget")


@pytest.mark.parametrize("how", ["copy", "stack"])
def test_the_budget_is_spent_on_blocks_that_gain_nothing_where_that_is_asked_for(how):
    model = block_model(LLAMA, torch.float64)
    # Samples that differ by sign alone: what one half gains by, the other one loses by.
    opposed = [
        replace(each, scores=torch.stack([each.scores, -each.scores], 1).flatten(0, 1)) for each in candidates(model)
    ]
    fields = {"operator": f"block_{how}", "max_growth": 2.0}
    careful = plan_blocks(opposed, model, GrowthConfig(**fields), to_come=1)
    assert not careful and careful.held_back.startswith("Gain")
    plan = plan_blocks(opposed, model, GrowthConfig(**fields, selection="gain"), to_come=1)
    assert [(block.after, block.how) for block in plan.blocks] == [("layers.0", how), ("layers.1", how)]
    assert plan.held_back is None and plan.predicted_gain < 0
    less = GrowthConfig(**fields | {"max_growth": None}, selection="gain", event_budget=opposed[0].cost.parameters)
    assert len(plan_blocks(opposed, model, less).blocks) == 1


def test_places_where_no_block_fits_are_no_candidates():
    name = "ResNetForImageClassification"
    model = block_model(name, torch.float64)
    found = block_candidates(model, repeated(name, model), loss=answer_loss)
    assert [each.after for each in found] == [f"encoder.stages.{i}.layers.{j}" for i, j in ((0, 1), (0, 2), (1, 1))]
    name = "SwinForImageClassification"
    model = family_model(name, torch.float64, **STAGES["swin"])
    found = block_candidates(model, repeated(name, model), loss=answer_loss)
    assert len(found) == 4 and {each.number for each in found} == {2}
    with pytest.raises(ValueError, match="post-norm"):
        block_candidates(block_model("BertForMaskedLM"), [inputs("BertForMaskedLM")] * 2, loss=answer_loss)
    with pytest.raises(ValueError, match="samples"):
        block_candidates(block_model(LLAMA), [inputs(LLAMA)], loss=lambda m, b: loss_of(LLAMA)(m))


WRONG = {
    "criterion": ({"criterion": "depth"}, "criterion"),
    "linears": ({"linears": ["mlp.up_proj"]}, "linears"),
    "selection": ({"selection": "pursuit"}, "leave out `selection`"),
    "selection of heads": ({"operator": "new_head", "selection": "gain"}, "`selection=.gain.`"),
    "selection of several": ({"operator": ["new_head", "block_copy"], "selection": "gain"}, "`selection='gain'`"),
    "freeze": ({"operator": "auto", "freeze": True}, "freeze=True"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_of_neurons_and_of_blocks_do_not_mix(case):
    fields, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        GrowthConfig(**{"operator": "block_copy"} | fields)
