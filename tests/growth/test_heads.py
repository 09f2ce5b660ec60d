"""Attention heads of every family that has them: what their growth keeps, costs, and leaves to optimizer and file."""

import copy

import pytest
import torch
import transformers
from family_cases import (
    CASES,
    EVERY,
    answers,
    assert_state_is_that_of_a_twin_that_grew_before,
    exact_norms_,
    family_model,
    family_plan,
    inputs,
    loss_of,
    paths,
    stock_model,
)
from torch import nn
from torch.nn.utils import prune

import hf_saddle
from hf_saddle.growth import (
    GrowthHistory,
    GrowthPlan,
    LayerGrowth,
    count_macs,
    count_parameters,
    grow_,
    grow_heads_,
    head_growth,
    insert_blocks_,
)
from hf_saddle.growth.records.block_records import NewBlock
from hf_saddle.models import FAMILIES
from hf_saddle.models.heads import heads_of


HEADED = [name for name in EVERY if not isinstance(FAMILIES[CASES[name][0]].heads, str)]
HEADED += ["BertLMHeadModel", "WhisperForAudioClassification", "T5ForConditionalGeneration"]
HEADED = [*dict.fromkeys(HEADED)]
every_family = pytest.mark.parametrize("name", HEADED)


def asked(model, how="new"):
    """Another number of heads in every attention module that may have its own, or two of them, the last first."""
    numbers, places = heads_of(model.base_model), {}
    for attention in model.attentions():
        places[attention.root] = attention.stack or attention.root
    more = {place: 1 + index for index, place in enumerate(dict.fromkeys(places.values()))}
    return {root: more[places[root]] if how == "new" else [n - 1, 0] for root, n in numbers.items()}


@torch.no_grad()
def wake_(model, seed=5):
    """Let new heads be read, and units answer."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.05)


def at_thirds(path, size):
    """Units in the middle of each third of a layer, which may hold queries, keys and values."""
    return path, "zero_gain", [size * part // 6 for part in (1, 3, 5)]


def with_units(name, **kwargs):
    """A model with nested units of all layers and of all parts of a layer, some neurons having several."""
    model = family_model(name, **kwargs)
    for neurons in ([0, 2, 9], [2, 7]):
        grow_(model, family_plan(model, "zero_gain", neurons))
    sizes = {path: model.get_submodule(path).neurons for path in paths(model, "zero_gain")}
    grow_(model, GrowthPlan(tuple(LayerGrowth.by_hand(model, *at_thirds(path, size)) for path, size in sizes.items())))
    grow_(model, family_plan(model, "zero_gain", [1, 0], depth=1))
    wake_(model)
    return model


@pytest.mark.thinned(3)
@every_family
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [family_model, with_units])
def test_new_heads_change_nothing_and_come_back_from_files(name, attention, make, tmp_path):
    model = make(name)
    model.set_attn_implementation(attention)
    before, parameters, macs = answers(model, name), count_parameters(model), count_macs(model)
    event = grow_heads_(model, asked(model))
    assert torch.equal(answers(model, name), before)
    assert event.parameters_after == count_parameters(model) > parameters
    assert event.macs_after == count_macs(model) > macs
    wake_(model)
    model.save_pretrained(tmp_path)
    loaded = copy.deepcopy(type(model).from_pretrained(tmp_path, attn_implementation=attention))
    assert loaded.config.heads == model.config.heads == event.shapes.heads
    assert torch.equal(answers(loaded, name), answers(model, name))
    history = GrowthHistory.from_model(loaded)
    history.check(loaded)
    if make is family_model:
        assert history.apply(family_model(name).config).heads == model.config.heads
        again = getattr(transformers, CASES[name][1]).from_pretrained(tmp_path)
        assert heads_of(again.base_model) == heads_of(model.base_model)


def test_units_of_values_follow_their_neurons_when_heads_move_these():
    model = with_units("GPT2LMHeadModel")
    layer = next(module for name, module in model.named_modules() if name.endswith("c_attn"))
    before, part, targets = answers(model, "GPT2LMHeadModel"), layer.neurons // 3, layer.skip.target.clone()
    grow_heads_(model, asked(model))
    added = layer.neurons // 3 - part
    assert added > 0 and set((targets // part).tolist()) == {0, 1, 2}
    assert torch.equal(layer.skip.target, targets + targets // part * added)
    assert torch.equal(answers(model, "GPT2LMHeadModel"), before)


@pytest.mark.thinned(4)
@every_family
@pytest.mark.parametrize("make", [family_model, with_units])
def test_splits_of_heads_keep_the_function_to_second_order(name, make, monkeypatch):
    single = make(name)
    before = answers(single, name)
    grow_heads_(single, asked(single, "split"), "split", step_size=0.0)
    torch.testing.assert_close(answers(single, name), before, rtol=1e-6, atol=1e-6 * float(before.abs().max()))
    exact_norms_(monkeypatch)
    model = make(name, dtype=torch.float64)
    before, moved = answers(model, name), []
    for step in (0.0, 0.02, 0.01):
        grown = copy.deepcopy(model)
        grow_heads_(grown, asked(model, "split"), "split", step_size=step)
        moved.append(float((answers(grown, name) - before).abs().max()) / float(before.abs().max()))
    assert moved[0] <= 2e-15
    assert 3.8 < moved[1] / moved[2] < 4.2, moved


@pytest.mark.thinned(8)
@every_family
@pytest.mark.parametrize("momentum", [False, True], ids=["adamw", "sgd"])
def test_state_after_a_split_is_that_of_a_twin_that_was_split_before(name, momentum, monkeypatch):
    exact_norms_(monkeypatch)

    def split_(model, optimizer):
        grow_heads_(model, asked(model, "split"), "split", optimizer, step_size=0.0)

    assert_state_is_that_of_a_twin_that_grew_before(with_units, split_, name, momentum, rtol=1e-8, atol=1e-12)


@pytest.mark.thinned(3)
@every_family
def test_new_heads_start_with_no_state_and_old_entries_keep_theirs(name):
    model = family_model(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of(name)(model).backward()
    optimizer.step()
    optimizer.zero_grad()
    averages = {
        parameter: optimizer.state[parameter]["exp_avg"].clone()
        for parameter in model.parameters()
        if parameter in optimizer.state
    }
    event = grow_heads_(model, asked(model), "new", optimizer)
    assert event.replaced
    for old, new in event.replaced.items():
        if old not in averages:
            continue
        now, then = optimizer.state[new]["exp_avg"], averages[old]
        assert float(now.sum()) == pytest.approx(float(then.sum()), rel=1e-5, abs=1e-6)
        assert int((now != 0).sum()) == int((then != 0).sum())
    loss_of(name)(model).backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "ViTForImageClassification"])
def test_one_event_of_neurons_units_and_heads_is_that_of_its_plan(name):
    model = family_model(name)
    root = next(iter(heads_of(model.base_model)))
    plans = [family_plan(model, "split", [0, 2], steps=0.0), family_plan(model, "zero_gain", [1, 5])]
    growths = [growth for plan in plans for growth in plan.growths]
    growths += [head_growth(model, root, [1], "split", step_size=0.0), head_growth(model, root, 2)]
    plan, twin, before = GrowthPlan(tuple(growths)), copy.deepcopy(model), answers(model, name)
    event = grow_(model, plan)
    torch.testing.assert_close(answers(model, name), before, rtol=1e-5, atol=1e-6)
    assert (event.parameters_after, event.macs_after) == (count_parameters(model), count_macs(model))
    grow_(twin, GrowthPlan.from_json(plan.to_json()))
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    assert event.operators == ["new_head", "split", "split_head", "zero_gain"]


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "Gemma3ForCausalLM", "BertLMHeadModel"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_is_that_without(name, cache):
    model = family_model(name)
    tokens = CASES[name][3]()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    stock = model.generate(**tokens, **options)
    grow_heads_(model, asked(model))
    assert torch.equal(model.generate(**tokens, **options), stock)
    wake_(model)
    without = model.generate(**tokens, **options, use_cache=False)
    kind = {"cache_implementation": "static"} if cache == "static" else {}
    assert torch.equal(model.generate(**tokens, **options, **kind), without)
    assert not torch.equal(without, stock)


def test_sequences_are_generated_with_a_cache_as_without():
    model = family_model("T5ForConditionalGeneration")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "suppress_tokens": [0]}
    tokens = {name: value for name, value in inputs("T5ForConditionalGeneration").items() if "decoder" not in name}
    stock = model.generate(**tokens, **options)
    grow_heads_(model, asked(model))
    assert torch.equal(model.generate(**tokens, **options), stock)
    wake_(model)
    found = model.generate(**tokens, **options)
    assert torch.equal(found, model.generate(**tokens, **options, use_cache=False)) and not torch.equal(found, stock)


def test_speech_is_transcribed_with_a_cache_as_without():
    name = "WhisperForConditionalGeneration"
    model = family_model(name)
    batch, told = inputs(name), []
    grow_heads_(model, asked(model))
    wake_(model)
    for use_cache in (True, False):
        tokens = batch["decoder_input_ids"][:, :1]
        found = model(batch["input_features"], decoder_input_ids=tokens, use_cache=use_cache)
        for _ in range(5):
            new = found.logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, new], 1)
            known = found.past_key_values if use_cache else None
            found = model(
                encoder_outputs=(found.encoder_last_hidden_state,),
                decoder_input_ids=new if use_cache else tokens,
                past_key_values=known,
                use_cache=use_cache,
            )
        told.append(tokens)
    assert torch.equal(*told)


REFUSED = {
    "a family without heads": ("ResNetModel", {"encoder.stages.0.layers.0": 1}, "new", "they have no attention heads"),
    "one of shared positions": (
        "T5EncoderModel",
        {"encoder.block.0.layer.0.SelfAttention": 1},
        "new",
        "the same heads grow in all of encoder.block.0.layer.0.SelfAttention, encoder.block.1.layer.0.SelfAttention",
    ),
    "other numbers at shared positions": (
        "T5EncoderModel",
        {"encoder.block.0.layer.0.SelfAttention": 1, "encoder.block.1.layer.0.SelfAttention": 2},
        "new",
        "the same heads grow in all",
    ),
    "other heads at shared positions": (
        "T5EncoderModel",
        {"encoder.block.0.layer.0.SelfAttention": [1], "encoder.block.1.layer.0.SelfAttention": [2]},
        "split",
        "the same heads grow in all",
    ),
    "one cross-attention of T5": (
        "T5ForConditionalGeneration",
        {"decoder.block.1.layer.1.EncDecAttention": 1},
        "new",
        "the same heads grow in all of decoder.block.0.layer.1.EncDecAttention, decoder.block.1.layer.1",
    ),
    "an unknown path": ("LlamaForCausalLM", {"layers.7.self_attn": 1}, "new", "no attention 'layers.7"),
    "no head": ("LlamaForCausalLM", {"layers.0.self_attn": 0}, "new", "must be 1 or more, got 0"),
    "truth": ("LlamaForCausalLM", {"layers.0.self_attn": True}, "new", "must be a number of new heads"),
    "more splits than heads": ("LlamaForCausalLM", {"layers.0.self_attn": 3}, "split", "must be 1 to 2"),
    "a head that is not there": ("LlamaForCausalLM", {"layers.0.self_attn": [2]}, "split", r"heads in \[0, 2\)"),
    "the same head twice": ("LlamaForCausalLM", {"layers.0.self_attn": [1, 1]}, "split", "duplicates"),
    "another way": ("LlamaForCausalLM", {"layers.0.self_attn": 1}, "copy", '`how` must be "new" or "split"'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(case):
    name, heads, how, message = REFUSED[case]
    unchanged(family_model(name), lambda model: grow_heads_(model, heads, how), message)


def unchanged(model, grow, message):
    """Verify that a growth is refused, and leaves every parameter, attribute, config and history as it was."""
    state = {key: (value, value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    config, attributes = copy.deepcopy(model.config), [dict(vars(a.module)) for a in model.attentions()]
    with pytest.raises(ValueError, match=message):
        grow(model)
    for key, value in model.state_dict(keep_vars=True).items():
        assert value is state[key][0] and torch.equal(value, state[key][1])
    assert model.config == config and model.growth_history is None
    assert [dict(vars(a.module)) for a in model.attentions()] == attributes


def tied(model):
    model.model.layers[1].self_attn.q_proj.weight = model.model.layers[0].self_attn.q_proj.weight


def hooked(model):
    model.model.layers[0].self_attn.v_proj.weight.register_hook(lambda gradient: gradient)


def pruned(model):
    prune.identity(model.model.layers[0].self_attn.o_proj, "weight")


def infinite(model):
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[0, 0] = torch.inf


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(tied, "are one parameter"), (hooked, "has hooks"), (pruned, "as pruning"), (infinite, "not finite")],
)
def test_what_hangs_on_parameters_is_noticed(spoil, message):
    model = family_model("LlamaForCausalLM")
    spoil(model)
    unchanged(model, lambda model: grow_heads_(model, {"layers.0.self_attn": 1}), message)


def test_heads_of_a_model_with_an_adapter_are_refused():
    from peft import LoraConfig, get_peft_model

    model = family_model("LlamaForCausalLM")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="has taken the place of the linear"):
        grow_heads_(model, {"layers.0.self_attn": 1})


def test_the_table_of_positions_is_not_exchanged_under_a_hook():
    model = family_model("SwinForImageClassification")
    root = next(iter(heads_of(model.base_model)))
    table = next(model.attentions()).module.relative_position_bias.relative_position_bias_table
    table.register_hook(lambda gradient: gradient)
    unchanged(model, lambda model: grow_heads_(model, {root: 1}), "relative_position_bias_table has hooks")


def test_stock_models_and_wrapped_ones_are_refused():
    model = family_model("LlamaForCausalLM")
    for other in (stock_model("LlamaForCausalLM"), nn.DataParallel(model)):
        with pytest.raises(ValueError, match="Only Saddle models grow"):
            grow_heads_(other, {"layers.0.self_attn": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: {"neurons": (5,)}, r"get the numbers \(2,\), got \(5,\)"),
        (lambda g: {"directions": g.directions[:, :-1]}, "must have .* columns"),
        (lambda g: {"directions": torch.ones_like(g.directions)}, "change a bias, which .*q_proj does not have"),
    ],
)
def test_plans_of_heads_that_do_not_fit_are_refused(change, message):
    model = family_model("LlamaForCausalLM")
    growth = head_growth(model, "layers.0.self_attn", 1)
    fields = {name: getattr(growth, name) for name in LayerGrowth.__dataclass_fields__}
    plan = GrowthPlan((LayerGrowth(**fields | change(growth)),))
    unchanged(model, lambda model: grow_(model, plan), message)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"layers.0.self_attn": 0}, r"must be an integer in \[1, 4096\]"),
        ({"layers.0.self_attn": 2.0}, "must be an integer"),
        ({"layers.0.mlp": 2}, "what it can name are layers.*self_attn"),
        ({"layers.9.self_attn": 2}, "which a SaddleLlamaModel does not have"),
        ([3], "must map paths"),
    ],
)
def test_configs_of_heads_that_cannot_be_are_refused(heads, message):
    config = family_model("LlamaForCausalLM").config
    with pytest.raises(ValueError, match=message):
        config.heads = heads
        hf_saddle.SaddleLlamaForCausalLM(config)


def test_config_of_a_family_without_heads_says_why():
    with pytest.raises(ValueError, match="Heads of saddle_resnet models cannot grow: they have no attention heads"):
        family_model("ResNetModel").config.heads = {"encoder.stages.0.layers.0": 5}


def test_modules_with_shared_positions_have_as_many_heads_in_configs_and_checkpoints():
    model, grown = family_model("T5EncoderModel"), family_model("T5EncoderModel")
    config = copy.deepcopy(model.config)
    config.heads = {"encoder.block.0.layer.0.SelfAttention": 5}
    with pytest.raises(ValueError, match=r"must have as many heads, .* got \[4, 5\]"):
        hf_saddle.SaddleT5EncoderModel(config)
    grow_heads_(grown, asked(grown))
    old = {name: value for name, value in model.state_dict().items() if "block.1.layer.0" in name}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="must have as many heads"):
        model.load_state_dict(grown.state_dict() | old)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_heads_of_shared_positions_and_blocks_of_the_same_list_do_not_come_in_one_event():
    model = family_model("T5EncoderModel")
    growths = tuple(head_growth(model, path, number) for path, number in asked(model).items())
    plan = GrowthPlan(growths, blocks=(NewBlock("encoder.block.1", "copy"),))
    unchanged(model, lambda model: grow_(model, plan), "let heads grow in an event of their own")
    grow_(model, GrowthPlan(growths))
    before = answers(model, "T5EncoderModel")
    insert_blocks_(model, after=[0, 1])
    assert set(heads_of(model.base_model).values()) == {5}
    assert torch.equal(answers(model, "T5EncoderModel"), before)


@pytest.mark.parametrize("name", ["BertLMHeadModel", "GPT2LMHeadModel"])
def test_heads_of_cross_attention_are_read_by_those_who_look_elsewhere(name, monkeypatch):
    exact_norms_(monkeypatch)
    seen = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(7))

    def found(model):
        with torch.no_grad():
            return model(**inputs(name), encoder_hidden_states=seen.to(model.dtype), use_cache=False).logits

    model = family_model(name, add_cross_attention=True)
    before = found(model)
    paths = {path: number for path, number in asked(model).items() if "crossattention" in path}
    assert len(paths) == 2
    grow_heads_(model, paths)
    assert torch.equal(found(model), before) and set(model.config.heads) == set(paths)
    wake_(model.double())
    before, moved = found(model), []
    for step in (0.0, 0.02, 0.01):
        grown = copy.deepcopy(model)
        grow_heads_(grown, dict.fromkeys(paths, [3, 0]), "split", step_size=step)
        moved.append(float((found(grown) - before).abs().max()) / float(before.abs().max()))
    assert moved[0] <= 2e-15
    assert 3.8 < moved[1] / moved[2] < 4.2, moved


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "GPT2LMHeadModel", "SwinForImageClassification", "T5ForConditionalGeneration"]
)
def test_a_larger_state_goes_into_a_smaller_model_and_back(name):
    model, plain = family_model(name), family_model(name)
    original, before = copy.deepcopy(plain.state_dict()), answers(plain, name)
    grow_heads_(model, asked(model))
    wake_(model)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(answers(plain, name), answers(model, name)) and plain.config.heads == model.config.heads
    plain.load_state_dict(original)
    assert torch.equal(answers(plain, name), before) and plain.config.heads is None


def test_a_state_whose_queries_and_values_are_of_other_numbers_of_heads_is_refused():
    model, grown = family_model("LlamaForCausalLM"), family_model("LlamaForCausalLM")
    grow_heads_(grown, {"layers.0.self_attn": 1})
    name = "model.layers.0.self_attn.q_proj.weight"
    state = grown.state_dict() | {name: model.state_dict()[name]}
    with pytest.raises(ValueError, match="q_proj.weight` has shape"):
        model.load_state_dict(state)


@pytest.mark.parametrize("damage", [-1, 1])
def test_a_history_with_other_heads_than_its_records_lead_to_is_damaged(damage):
    model = family_model("LlamaForCausalLM")
    for _ in range(2):
        grow_heads_(model, {"layers.0.self_attn": 1})
    record = copy.deepcopy(model.growth_history)
    record["events"][1]["shapes"]["heads"]["layers.0.self_attn"] += damage
    with pytest.raises(ValueError, match="layers.0.self_attn has . after event 1"):
        GrowthHistory.from_dict(record)
