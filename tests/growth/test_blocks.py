"""Whole blocks in every family: what they keep, what follows them, and what is refused."""

import copy

import pytest
import torch
import transformers
from family_cases import CASES, EVERY, answers, family_model, family_plan, grown_model, inputs
from optimizer_cases import names_of
from torch import nn
from transformers import GenerationMixin

import hf_saddle
from hf_saddle.growth import (
    GrowthHistory,
    GrowthPlan,
    NewBlock,
    count_macs,
    count_parameters,
    grow_,
    insert_blocks_,
    prepare_growth,
)
from hf_saddle.growth.surgery.blocks import inserted_blocks
from hf_saddle.models import FAMILIES
from hf_saddle.models.blocks import block_paths
from hf_saddle.models.families import blocks_in
from hf_saddle.models.loading import fit_blocks_


SILENT = ("copy", "identity", "average")
# Post-norm models, whose blocks cannot begin without an effect.
POST_NORM = [kind for kind, family in FAMILIES.items() if family.audible is FAMILIES["bert"].audible]
AUDIBLE = [name for name in EVERY if CASES[name][0] in POST_NORM]
QUIET = [name for name in EVERY if name not in AUDIBLE]
GENERATING = [name for name in CASES if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))]
# Stages of three blocks, of which the first one of a ResNet changes the shape of what passes.
STAGES = {
    "convnext": {"depths": [3, 2]},
    "resnet": {"depths": [3, 2], "hidden_act": "relu"},
    "swin": {"depths": [2, 2]},
}
every_way = pytest.mark.parametrize("how", SILENT)


def block_model(name, dtype=torch.float32, **config):
    return family_model(name, dtype, smooth=False, **STAGES.get(CASES[name][0], {}), **config)


def places(name, how="copy"):
    """Where a block can be inserted: those of a Swin alternate, so that two come, or one at the end of a stage."""
    if CASES[name][0] == "swin":
        return [0, 0] if how == "average" else [1]
    return [1] if CASES[name][0] == "resnet" else [0]


def tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


# ------------------------------------------------------------------------------------------------------ what they keep
@every_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", QUIET)
def test_new_blocks_change_nothing(name, dtype, how):
    model = block_model(name, dtype)
    before, macs, held = answers(model, name), count_macs(model), {*model.parameters()}
    event = insert_blocks_(model, places(name, how), how)
    assert torch.equal(answers(model, name), before)
    assert held < {*model.parameters()}  # those that move are the same objects
    assert (count_parameters(model), count_macs(model)) == (event.parameters_after, event.macs_after)
    assert event.parameters_after > event.parameters_before and event.macs_after > event.macs_before == macs
    assert [record["how"] for record in event.blocks] == [how] * len(places(name, how))
    # Their outputs learn from the first step on, and with them, after it, the rest.
    model.train()
    for module in model.modules():
        module.p = 0.0 if isinstance(module, nn.Dropout) else vars(module).get("p")
    answers_with_gradient(model, name).float().square().sum().backward()
    assert any(bool(new.grad is not None and new.grad.any()) for new in event.added.values())


def answers_with_gradient(model, name):
    batch = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs(name).items()}
    found = model(**batch)
    return found.get("logits", found.get("last_hidden_state", found.get("feature_maps")))


# What saving adds to a config.
FRESH = ("auto_map", "architectures", "dtype")


@pytest.mark.parametrize("kind", ["ViT", "Bert"])
def test_models_without_a_pooler_take_blocks(kind):
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    model, other = (
        hf_saddle.growable(getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False)).eval()
        for _ in range(2)
    )
    bare = count_macs(model)
    insert_blocks_(model, [1], "stack")
    assert model.config.num_hidden_layers == 3 and model.pooler is None
    assert count_macs(model) == pytest.approx(1.5 * bare, rel=0.05)
    other.load_state_dict(model.state_dict())
    data = {"pixel_values": torch.randn(2, 3, 8, 8)} if kind == "ViT" else {"input_ids": torch.arange(10).view(2, 5)}
    assert torch.equal(other(**data).last_hidden_state, model(**data).last_hidden_state)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", CASES)
def test_expanded_models_come_back_from_files_as_growable_and_as_stock(name, tmp_path):
    how = "copy" if CASES[name][0] not in POST_NORM else "stack"
    model = block_model(name)
    insert_blocks_(model, places(name), how)
    wanted = answers(model, name)
    model.save_pretrained(tmp_path)
    # Copied, since the memory of a file is aligned otherwise, by which products are rounded.
    for kind in (type(model), getattr(transformers, CASES[name][1]), getattr(transformers, name)):
        if kind.__name__ == "AutoBackbone":  # takes none but those of transformers
            continue
        loaded = copy.deepcopy(kind.from_pretrained(tmp_path))
        assert_equal(tensors(loaded), tensors(model))
        assert torch.equal(answers(loaded, name), wanted)
    history = GrowthHistory.load(tmp_path / "growth_history.json")
    history.check(type(model).from_pretrained(tmp_path))
    replayed, found = history.apply(block_model(name).config).to_dict(), model.config.to_dict()
    assert {key for key in found if replayed.get(key) != found[key]} <= {*FRESH}
    stock = hf_saddle.to_stock(model)
    assert type(stock) is getattr(transformers, name) and torch.equal(answers(stock, name), wanted)


@pytest.mark.thinned(3)
@every_way
@pytest.mark.parametrize("name", QUIET)
def test_blocks_with_branches_and_more_neurons_are_copied_with_them(name, how):
    model = grown_model(name, **STAGES.get(CASES[name][0], {}))
    before, shapes = answers(model, name), model.shapes()
    if how == "average":
        with pytest.raises(ValueError, match="no mean"):
            insert_blocks_(model, places(name, how), how)
        return
    insert_blocks_(model, places(name, how), how)
    assert torch.equal(answers(model, name), before)
    GrowthHistory.from_model(model).check(model)
    old = block_paths(model.base_model, model.config)[places(name)[0]]
    new = block_paths(model.base_model, model.config)[places(name)[0] + 1]
    of = {root: size for root, size in model.shapes().widths.items() if root.startswith(f"{new}.")}
    assert of == {root.replace(old, new): shapes.widths[root] for root in shapes.widths if root.startswith(f"{old}.")}
    branches = [root for root in model.shapes().skip_sizes if root.startswith(f"{new}.")]
    assert bool(branches) == (how == "copy")
    grow_(model, family_plan(model, "gradmax", [0]))  # new blocks grow as old ones
    GrowthHistory.from_model(model).check(model)


# ------------------------------------------------------------------------------------------------- with scaled outputs
def expanded(name, branched, how="copy", **options):
    """A model with a new block, with or without branches that answer."""
    model = grown_model(name, **STAGES.get(CASES[name][0], {})) if branched else block_model(name)
    insert_blocks_(model, places(name), how, **options)
    return model


branched_or_not = pytest.mark.parametrize("branched", [False, True])


@branched_or_not
@pytest.mark.parametrize("name", QUIET)
def test_a_factor_leads_from_silent_copies_to_plain_ones(name, branched):
    silent, plain = expanded(name, branched), expanded(name, branched, "stack")
    zero, one = (expanded(name, branched, scale=scale) for scale in (0, 1))
    assert_equal(tensors(zero), tensors(silent))
    assert_equal(tensors(one), tensors(plain))
    assert torch.equal(answers(one, name), answers(plain, name))


@branched_or_not
@pytest.mark.parametrize("name", EVERY)
def test_a_scaled_copy_adds_a_share_of_what_a_plain_one_adds(name, branched):
    plain, scaled = (expanded(name, branched, scale=scale).double() for scale in (1.0, 0.25))
    path = block_paths(plain.base_model, plain.config)[places(name)[0] + 1]
    met, one, other = {}, plain.base_model.get_submodule(path), scaled.base_model.get_submodule(path)
    outputs = dict(blocks_in(plain.base_model, plain.config))[path].outputs
    own, modules = dict(one.named_parameters()), dict(one.named_modules())
    for output in outputs:
        if output in modules:
            # Cloned, as a ResNet adds to it in place.
            modules[output].register_forward_hook(
                lambda _, args, answer, output=output: met.update({output: (args, answer.clone())})
            )
    answers(plain, name)
    assert met.keys() == {output for output in outputs if output in modules} and outputs
    for output in outputs:
        if output in met:
            args, answer = met[output]
            torch.testing.assert_close(other.get_submodule(output)(*args), 0.25 * answer, rtol=1e-5, atol=1e-7)
        else:
            torch.testing.assert_close(dict(other.named_parameters())[output], 0.25 * own[output])


def test_scaled_copies_are_replayed_and_come_back_from_files(tmp_path):
    name = "LlamaForCausalLM"
    model, twin = block_model(name), block_model(name)
    before = answers(model, name)
    plan = GrowthPlan(blocks=(NewBlock("layers.0", "copy", scale=0.5), NewBlock("layers.1", "average", scale=0.25)))
    with pytest.raises(ValueError, match="last block of its list"):
        grow_(model, plan)
    plan = GrowthPlan(blocks=(NewBlock("layers.0", "average", scale=0.25), NewBlock("layers.1", "copy", scale=0.5)))
    grow_(model, plan)
    wanted = answers(model, name)
    assert not torch.equal(wanted, before)
    grow_(twin, GrowthPlan.from_json(plan.to_json()))
    assert_equal(tensors(twin), tensors(model))
    model.save_pretrained(tmp_path)
    loaded = copy.deepcopy(type(model).from_pretrained(tmp_path))
    assert torch.equal(answers(loaded, name), wanted)
    history = GrowthHistory.load(tmp_path / "growth_history.json")
    history.check(loaded)
    assert [record["scale"] for record in history.events[0].blocks] == [0.25, 0.5]
    again = block_model(name)
    grow_(again, GrowthPlan(blocks=tuple(map(NewBlock.from_dict, history.events[0].blocks))))
    assert_equal(tensors(again), tensors(model))


@pytest.mark.parametrize("scale", [-0.5, 1.5, True, float("nan"), "half"])
def test_factors_that_cannot_be_meant_are_refused(scale):
    with pytest.raises(ValueError, match="`scale` of a new block must be a number"):
        insert_blocks_(block_model("LlamaForCausalLM"), [0], scale=scale)


def test_plain_copies_and_pairs_have_no_factor():
    model = block_model("LlamaForCausalLM")
    with pytest.raises(ValueError, match="`how='copy'` with `scale`"):
        insert_blocks_(model, [0], "stack", scale=0.5)
    grow_(model, family_plan(model, "residual_pair", [0]))
    with pytest.raises(ValueError, match="Residual pairs have no gains"):
        insert_blocks_(model, [0], scale=0.5)
    insert_blocks_(model, [0], scale=1.0)


def test_fresh_blocks_of_a_loaded_model_are_initialised(tmp_path):
    name = "ResNetForImageClassification"
    block_model(name).save_pretrained(tmp_path)
    model = hf_saddle.SaddleResNetForImageClassification.from_pretrained(tmp_path)
    state, before = torch.get_rng_state(), answers(model, name)
    event = insert_blocks_(model, [0], "identity")  # behind a block that a copy could not follow
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(answers(model, name), before)
    drawn = [new for new in event.added.values() if new.dim() == 4]
    assert len(drawn) == 3 and all(0.005 < float(new.detach().std()) < 1 for new in drawn)


@pytest.mark.parametrize("name", GENERATING)
def test_generation_goes_on_with_and_without_a_cache(name):
    how = "stack" if CASES[name][0] in POST_NORM else "copy"
    # transformers counts the encoder where it makes the cache of a Whisper's decoder.
    model = block_model(name, **({"encoder_layers": 4} if "Whisper" in name else {}))
    prompt = {key: value for key, value in inputs(name).items() if not key.startswith("decoder")}
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}

    def generate(**kwargs):
        return GenerationMixin.generate(model, **prompt, **options, **kwargs)  # Whisper's own calls a deprecated form

    before = generate()
    number = len(block_paths(model.base_model, model.config))
    insert_blocks_(model, [number - 1] if how == "stack" else [0, number - 1], how)
    cached = generate()
    assert torch.equal(cached, generate(use_cache=False))
    assert how == "stack" or torch.equal(cached, before)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "ViTForImageClassification", "T5ForConditionalGeneration"])
def test_recorded_outputs_count_the_new_blocks(name):
    model, batch = block_model(name), inputs(name)
    first = model(**batch, output_hidden_states=True)  # which installs what records
    insert_blocks_(model, [0], "copy")
    second = model(**batch, output_hidden_states=True)
    key = "hidden_states" if "hidden_states" in first else "encoder_hidden_states"
    assert len(second[key]) == len(first[key]) + 1
    assert torch.equal(second[key][1], second[key][2]) and torch.equal(second[key][-1], first[key][-1])


# ---------------------------------------------------------------------------------------------- what follows the place
def test_what_stock_derives_from_the_place_follows():
    model = block_model("Gemma3ForCausalLM", num_hidden_layers=3, layer_types=KINDS_OF_GEMMA, sliding_window=4)
    before = answers(model, "Gemma3ForCausalLM")
    insert_blocks_(model, [0, 1], "copy")
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert model.config.layer_types == kinds and model.config.num_hidden_layers == 5
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3, 4]
    assert torch.equal(answers(model, "Gemma3ForCausalLM"), before)
    other = block_model("Gemma3ForCausalLM", num_hidden_layers=3, layer_types=KINDS_OF_GEMMA, sliding_window=4)
    with pytest.raises(ValueError, match="layer_types.*from_pretrained"):
        other.load_state_dict(model.state_dict())
    fit_blocks_(other, model.config)  # as a GrowthTrainer that resumes
    other.load_state_dict(model.state_dict())
    assert torch.equal(answers(other, "Gemma3ForCausalLM"), before) and other.config.layer_types == kinds


KINDS_OF_GEMMA = ["sliding_attention", "full_attention", "sliding_attention"]


def test_rates_of_stochastic_depth_rise_over_all_blocks():
    model = block_model("ViTForImageClassification", num_hidden_layers=3)
    model = type(model)(type(model.config)(**model.config.to_dict() | {"drop_path_rate": 0.3}))
    insert_blocks_(model, [0], "copy")
    assert [round(layer.dropout.drop_path, 6) for layer in model.vit.layers] == [0.0, 0.1, 0.2, 0.3]
    model = block_model("ConvNextForImageClassification", drop_path_rate=0.3)
    insert_blocks_(model, [1], "copy")
    rates = [layer.drop_path.drop_prob for stage in model.convnext.encoder.stages for layer in list(stage.layers)[1:]]
    assert rates == pytest.approx([0.06, 0.12, 0.18, 0.3])


def test_features_of_a_backbone_are_those_behind_the_new_blocks():
    config = transformers.Dinov2Config(**CASES["Dinov2Model"][2], out_features=["stage1", "stage2"])
    model = hf_saddle.growable(transformers.Dinov2Backbone(config)).eval()
    before = model(**inputs("Dinov2Model")).feature_maps
    insert_blocks_(model, [0, 1], "copy")
    after = model(**inputs("Dinov2Model")).feature_maps
    assert model.config.out_features == ["stage2", "stage4"]
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))


def test_heads_that_tell_times_are_those_of_the_same_blocks():
    model = block_model("WhisperForConditionalGeneration")
    model.generation_config.alignment_heads = [[0, 1], [1, 2]]
    insert_blocks_(model, [2], "copy")  # the first of the decoder
    assert model.generation_config.alignment_heads == [[0, 1], [2, 2]]
    assert (model.config.encoder_layers, model.config.decoder_layers) == (2, 3)


# ------------------------------------------------------------------------------------------------------- the optimizer
OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
}


def decay_groups(model):
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for n, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]


def train_(model, optimizer, name, steps=2):
    for _ in range(steps):
        answers_with_gradient(model, name).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    "name", ["GPT2LMHeadModel", "ResNetForImageClassification", "WhisperForConditionalGeneration"]
)
def test_the_optimizer_goes_on_as_one_that_was_made_for_the_expanded_model(name, kind):
    model = block_model(name)
    optimizer = OPTIMIZERS[kind](decay_groups(model))
    train_(model, optimizer, name)
    states = {parameter: copy.deepcopy(state) for parameter, state in optimizer.state.items()}
    event = insert_blocks_(model, places(name), "copy", optimizer)
    # A fresh optimizer of a twin, with the states of what was there.
    twin = copy.deepcopy(model)
    other = OPTIMIZERS[kind](decay_groups(twin))
    for parameter, of_twin in zip(model.parameters(), twin.parameters(), strict=True):
        if parameter in states:
            other.state[of_twin] = states[parameter]
    assert names_of(model, optimizer) == names_of(twin, other)
    assert not any(new in optimizer.state for new in event.added.values())
    for each, own in ((model, optimizer), (twin, other)):
        train_(each, own, name, 3)
    assert_equal(tensors(model), tensors(twin))


def test_names_in_the_groups_of_an_optimizer_follow():
    model = block_model("LlamaForCausalLM")
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-2)
    insert_blocks_(model, [0], "copy", optimizer)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


def test_an_optimizer_that_was_not_told_raises():
    model = block_model("LlamaForCausalLM")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    insert_blocks_(model, [0], "copy")
    with pytest.raises(RuntimeError, match="no optimizer trains"):
        train_(model, optimizer, "LlamaForCausalLM", 2)


def test_only_new_blocks_are_trained_where_all_else_is_frozen():
    model = block_model("LlamaForCausalLM")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train_(model, optimizer, "LlamaForCausalLM")
    for number in (1, 2):
        insert_blocks_(model, [0], "copy", optimizer, freeze=True)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, _ in model.named_parameters() if name.startswith(INSERTED[:number])}
        before = tensors(model)
        train_(model, optimizer, "LlamaForCausalLM")
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed and changed <= trained
    assert GrowthHistory.from_model(model).events[-1].frozen


INSERTED = ("model.layers.1.", "model.layers.2.")


# --------------------------------------------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("name", [*QUIET, "BertForMaskedLM"])
def test_weights_of_more_or_fewer_blocks_are_taken(name):
    small, large = block_model(name), block_model(name)
    insert_blocks_(large, [*places(name)] * 2, "stack")
    for model, other in ((copy.deepcopy(small), large), (copy.deepcopy(large), small)):
        held = {*model.parameters()}
        result = model.load_state_dict(other.state_dict())
        assert not result.missing_keys and not result.unexpected_keys
        assert model.shapes() == other.shapes()
        assert torch.equal(answers(model, name), answers(other, name))
        assert (held < {*model.parameters()}) == (other is large)


def test_a_part_of_a_checkpoint_is_no_smaller_model():
    model = block_model("LlamaForCausalLM")
    part = {name: tensor for name, tensor in model.state_dict().items() if "layers.0." in name}
    model.load_state_dict(part, strict=False)
    assert len(model.model.layers) == 2


def test_histories_tell_of_blocks_and_old_ones_are_read():
    model = block_model("LlamaForCausalLM")
    insert_blocks_(model, [0, 0, 1], "copy")
    grow_(model, family_plan(model, "zero_gain", [1]))
    insert_blocks_(model, "even", "identity", number=2)
    history = GrowthHistory.from_model(model)
    assert [record["after"] for record in history.events[0].blocks] == ["layers.0", "layers.0", "layers.1"]
    assert inserted_blocks(history) == [f"layers.{index}" for index in (1, 3, 5, 2, 6)]
    twin = block_model("LlamaForCausalLM")
    for event in (history.events[0], history.events[2]):
        plan = GrowthPlan(blocks=tuple(NewBlock.from_dict(record) for record in event.blocks))
        if event is history.events[2]:
            grow_(twin, family_plan(twin, "zero_gain", [1]))
        grow_(twin, GrowthPlan.from_json(plan.to_json()))
    assert_equal(tensors(twin), tensors(model))
    values = history.to_dict()
    values["events"] = values["events"][:1]
    for damage in (
        {"blocks": [{"after": "layers.7", "how": "copy", "predicted_gain": 0.0}]},
        {"blocks": [{"after": "layers.0", "how": "twice", "predicted_gain": 0.0}]},
        {"blocks": values["events"][0]["blocks"][:1]},
        {"blocks": "layers.0"},
        {"frozen": 1},
        {"operators": ["block_stack"]},
    ):
        with pytest.raises(ValueError, match="damaged"):
            GrowthHistory.from_dict(values | {"events": [values["events"][0] | damage]})
    old = GrowthHistory.from_model(family_grown()).to_dict()
    for event in old["events"]:
        del event["blocks"], event["frozen"]
    assert GrowthHistory.from_dict(old).to_dict()["events"][0]["blocks"] == []


def family_grown():
    model = block_model("LlamaForCausalLM")
    grow_(model, family_plan(model, "zero_gain", [1]))
    return model


# ------------------------------------------------------------------------------------------------------------ refusals
def shared(model):
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight


def offloaded(model):
    block = model.model.layers[0]
    block.forward = block.forward


def hooked(model):
    model.model.layers[0].mlp.up_proj.weight.register_post_accumulate_grad_hook(print)


def quantised(model):
    model.model.layers[0].mlp.up_proj = nn.Identity()


def untouched(model):
    pass


LLAMA, SWIN, RESNET, GPT2 = (
    "LlamaForCausalLM",
    "SwinForImageClassification",
    "ResNetForImageClassification",
    "GPT2LMHeadModel",
)
REFUSED = {
    "post_norm": ("BertForMaskedLM", untouched, {"after": [0]}, "post-norm.*stack"),
    "activation": (RESNET, untouched, {"after": [1], "config": {"hidden_act": "silu"}}, "no ReLU"),
    "shape": (RESNET, untouched, {"after": [0]}, "changes the shape"),
    "out_of_range": (LLAMA, untouched, {"after": [2]}, "block 2.*from 0 to 1"),
    "negative": (LLAMA, untouched, {"after": [-1]}, "block -1"),
    "no_number": (LLAMA, untouched, {"after": [True]}, "block True"),
    "nothing": (LLAMA, untouched, {"after": []}, "names no block"),
    "word": (LLAMA, untouched, {"after": "odd"}, "'even'"),
    "even_without_number": (LLAMA, untouched, {"after": "even"}, "`number`"),
    "number_of_places": (LLAMA, untouched, {"after": [0], "number": 2}, "`number` goes with"),
    "how": (LLAMA, untouched, {"after": [0], "how": "fold"}, "must be one of copy"),
    "last_average": (LLAMA, untouched, {"after": [1], "how": "average"}, "no other one"),
    "alternating": (SWIN, untouched, {"after": [0]}, "shift_size.*two of a Swin"),
    "scaled_by_place": (
        GPT2,
        untouched,
        {"after": [0], "config": {"scale_attn_by_inverse_layer_idx": True}},
        "behind the last block",
    ),
    "counted_weights": (
        "WhisperForAudioClassification",
        untouched,
        {"after": [0], "config": {"use_weighted_layer_sum": True}},
        "as many entries",
    ),
    "shared": (LLAMA, shared, {"after": [0]}, "are one parameter"),
    "offloaded": (LLAMA, offloaded, {"after": [0]}, "device_map"),
    "hooked": (LLAMA, hooked, {"after": [0]}, "has hooks"),
    "exchanged": (LLAMA, quantised, {"after": [0]}, "taken the place"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_inserted_is_refused_before_anything_changes(case):
    name, spoil, arguments, message = REFUSED[case]
    arguments = dict(arguments)
    config = STAGES.get(CASES[name][0], {}) | arguments.pop("config", {})
    model = family_model(name, smooth=False, **config)
    spoil(model)
    before, shape = tensors(model), model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        insert_blocks_(model, **arguments)
    assert_equal(tensors(model), before)
    assert model.config.to_dict() == shape and model.growth_history is None


def test_plans_that_cannot_be_meant_are_refused():
    model = block_model(LLAMA)
    growths = family_plan(model, "zero_gain", [1]).growths
    with pytest.raises(ValueError, match="`freeze` leaves only inserted blocks to be trained"):
        GrowthPlan(growths, blocks=(NewBlock("layers.0", "copy"),), freeze=True)
    with pytest.raises(ValueError, match="no block 'layers.9'"):
        grow_(model, GrowthPlan(blocks=(NewBlock("layers.9", "copy"),)))
    with pytest.raises(ValueError, match="Only Saddle models"):
        insert_blocks_(nn.Linear(2, 2), [0])


def test_all_or_nothing():
    """An optimizer of another model fails late; what was prepared and taken back leaves no trace."""
    model = block_model(LLAMA)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
    train_(model, optimizer, LLAMA)
    before, fields, held = tensors(model), vars(model.config).copy(), names_of(model, optimizer)
    with pytest.raises(ValueError, match="does not hold"):
        insert_blocks_(model, [0], "copy", torch.optim.AdamW(block_model(LLAMA).parameters(), lr=1e-2))
    plan = GrowthPlan(blocks=(NewBlock("layers.0", "copy"),), freeze=True)
    prepared = prepare_growth(model, plan, optimizer)
    prepared.commit_()
    assert len(model.model.layers) == 3
    prepared.rollback_()
    assert_equal(tensors(model), before)
    assert vars(model.config) == fields and names_of(model, optimizer) == held and model.growth_history is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    train_(model, optimizer, LLAMA)
