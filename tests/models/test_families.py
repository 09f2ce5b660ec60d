"""Every family, from one table: conversion, shapes, saving and loading, pickles, recorded outputs, generation."""

import copy
import pickle
import re

import pytest
import torch
import transformers
from families_cases import (
    CASES,
    OF_FAMILY,
    aligned,
    assert_equal,
    every_case,
    every_family,
    every_family_slowly,
    grown_model,
    grown_shapes,
    inputs,
    one_block,
    outputs,
    stock_model,
)
from model_cases import CHECKPOINTING
from torch import nn
from transformers import AutoConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from upstream_cases import ROWS

import hf_saddle
from hf_saddle.models import FAMILIES, Growable, families
from hf_saddle.models.descriptions import Family
from hf_saddle.models.families import blocks_in, family_of
from hf_saddle.models.shapes import Shapes


GENERATING = [name for name in CASES if getattr(transformers, name).can_generate() and "Sequence" not in name]
EAGER = {"attn_implementation": "eager"}
WITHOUT_ATTENTIONS = ("convnext", "resnet")


def saddle(name: str) -> type[PreTrainedModel]:
    return getattr(hf_saddle, f"Saddle{name}")


def test_every_family_has_a_case():
    assert OF_FAMILY.keys() == FAMILIES.keys()


@every_case
def test_outputs_of_converted_models_are_those_of_stock_bit_for_bit(name):
    stock, batch = stock_model(name), inputs(name)
    expected = outputs(stock, batch, output_hidden_states=True)
    model = saddle(name).from_stock(stock)
    assert_equal(outputs(model, batch, output_hidden_states=True), expected)
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in stock.named_parameters()]


@every_case
def test_conversion_in_place_keeps_parameters_and_hooks(name):
    stock, batch = stock_model(name).train(), inputs(name)
    expected, held, calls = outputs(stock.eval(), batch, output_hidden_states=True), list(stock.parameters()), []
    stock.register_forward_hook(lambda *args: calls.append(1))
    model = hf_saddle.growable(stock)
    assert model is stock and type(model) is saddle(name)
    assert all(one is other for one, other in zip(model.parameters(), held, strict=True))
    assert_equal(outputs(model, batch, output_hidden_states=True), expected)
    assert calls and hf_saddle.growable(model) is model
    assert model.config == model.base_model.config == saddle(name).config_class(**model.config.to_dict())


@every_case
def test_layers_are_found_by_their_paths(name):
    model = grown_model(name)
    sites = list(model.growable_linears())
    growable = {path: module for path, module in model.named_modules() if isinstance(module, Growable)}
    assert {site.path: site.module for site in sites} == growable and len(growable) == len(sites)
    for site in sites:
        assert model.base_model.get_submodule(site.root + ".skip.linear" * site.depth) is site.module
        assert site.root.endswith(f".{site.linear}") and (site.neurons is None or not site.nested)
        for path in () if site.neurons is None else (*site.neurons.readers, *site.neurons.rows):
            assert isinstance(model.get_submodule(path), Growable)
    assert [site.block for site in sites] == sorted(site.block for site in sites)
    widths = {site.root: site.module.neurons for site in sites if site.neurons is not None}
    branches = {site.root: site.module.skip_sizes for site in sites if not site.nested and site.module.skip_sizes}
    assert Shapes(widths, branches) == model.shapes()
    assert Shapes.of_json(model.shapes().to_json(), "shapes") == model.shapes()


@every_case
def test_the_rows_of_neurons_feed_their_readers_through_the_activation(name):
    """What is described is what is computed: outputs of rows, norm and activation, in this order, reach the reader."""
    model, seen = saddle(name).from_stock(stock_model(name)), {}

    def note(path):
        def hook(module, args, out):
            seen.setdefault(path, (args[0].clone(), out.clone()))

        return hook

    groups = [site.neurons for site in model.growable_linears() if site.neurons is not None]
    for group in groups:
        for path in {*group.rows, *group.readers, *group.norms, group.activation}:
            model.get_submodule(path).register_forward_hook(note(path))
    outputs(model, inputs(name))
    for group in groups:
        hidden = seen[group.rows[0]][1]
        for path in group.norms:
            assert torch.equal(seen[path][0], hidden)
            hidden = seen[path][1]
        hidden = model.get_submodule(group.activation)(hidden)
        for path in group.rows[1:]:
            hidden = hidden * seen[path][1]
        for path in group.readers:
            torch.testing.assert_close(seen[path][0], hidden)


@every_family
def test_a_name_that_matches_no_module_raises(name, monkeypatch):
    model_type = CASES[name][0]
    family = family_of(model_type)

    def renamed(config):
        return tuple(((*linears, "of_tomorrow"), *rest) for linears, *rest in family.insides(config))

    stock = stock_model(name)
    elsewhere = tuple(f"body.{path}" for path in family.paths)
    for paths, insides, message in (
        (family.paths, renamed, "has not .*of_tomorrow"),
        (elsewhere, family.insides, "any block"),
    ):
        monkeypatch.setitem(families.FAMILIES, model_type, Family(paths, insides, family.activation))
        with pytest.raises(ValueError, match=message):
            hf_saddle.growable(stock)
    assert not any(isinstance(module, Growable) for module in stock.modules())


def test_an_unknown_family_is_refused():
    config = transformers.OPTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8, vocab_size=9)
    with pytest.raises(ValueError, match="no description of the model type 'opt'.*llama.*CONTRIBUTING"):
        hf_saddle.growable(transformers.OPTModel(config))
    with pytest.raises(AttributeError, match="SaddleOPTModel.*Known are .*llama.*CONTRIBUTING"):
        _ = hf_saddle.SaddleOPTModel
    with pytest.raises(AttributeError, match="SaddleOPTConfig.*Known are .*llama.*CONTRIBUTING"):
        _ = hf_saddle.SaddleOPTConfig
    with pytest.raises(AttributeError, match="SaddleLlamaForNothing"):
        _ = hf_saddle.SaddleLlamaForNothing


@pytest.mark.parametrize("thing", ["openai-community/gpt2", nn.Linear(2, 2)], ids=["a name", "a module"])
def test_only_models_of_transformers_become_growable(thing):
    with pytest.raises(ValueError, match="not a model class of transformers"):
        hf_saddle.growable(thing)


def test_a_layer_that_was_exchanged_is_refused_and_nothing_is_changed():
    stock = stock_model("LlamaForCausalLM")
    stock.model.layers[1].mlp.up_proj = nn.Sequential(stock.model.layers[1].mlp.up_proj)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj.*Sequential.*Adapters"):
        hf_saddle.growable(stock)
    assert type(stock).__name__ == "LlamaForCausalLM"
    assert not any(isinstance(module, Growable) for module in stock.modules())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"widths": {"h.0.mlp.c_proj": 9}}, r"`widths` names 'h.0.mlp.c_proj'; what it can name are h\.\*\.mlp\.c_fc"),
        ({"widths": {"h.0.mlp.c_fc": 0}}, r"widths\['h.0.mlp.c_fc'\]"),
        ({"skip_sizes": {"h.0.mlp": [3]}}, "`skip_sizes` names 'h.0.mlp'"),
        ({"skip_sizes": {"h.0.attn.c_attn": [3, 0]}}, r"skip_sizes\['h.0.attn.c_attn'\]"),
        ({"skip_activation": "gelu_of_nobody"}, "skip_activation"),
        ({"per_layer_config": {0: {"intermediate_size": 9}}}, "no `per_layer_config`"),
        ({"n_layer": 10**6}, "n_layer"),
        ({"n_embd": 2**30}, "n_embd"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        hf_saddle.models.SaddleGPT2Config(**CASES["GPT2LMHeadModel"][2] | fields)


@every_family
def test_numbers_of_blocks_and_neurons_that_cannot_be_are_refused(name):
    kind, family = saddle(name).config_class, family_of(CASES[name][0])
    for field in {*family.counts, *family.widths}:
        with pytest.raises(ValueError, match=f"`{field}`.*1099511627776"):
            kind(**CASES[name][2] | {field: [2**40, 1] if field == "depths" else 2**40})


def test_layers_that_the_model_does_not_have_are_refused():
    config = hf_saddle.models.SaddleGPT2Config(**CASES["GPT2LMHeadModel"][2], widths={"h.7.mlp.c_fc": 60})
    with pytest.raises(ValueError, match=r"h\.7\.mlp\.c_fc, which a SaddleGPT2Model does not have"):
        hf_saddle.SaddleGPT2LMHeadModel(config)


def test_residual_pairs_are_refused_for_convolutions():
    options = {"skip_unit": "residual_pair", "skip_sizes": {"encoder.stages.0.layers.0.dwconv": [2]}}
    config = hf_saddle.models.SaddleConvNextConfig(**CASES["ConvNextForImageClassification"][2], **options)
    with pytest.raises(ValueError, match="zero_gain"):
        hf_saddle.SaddleConvNextModel(config)


@pytest.mark.parametrize(
    "name, activation", [("ResNetModel", "gelu"), ("T5EncoderModel", "gelu"), ("CLIPVisionModel", "quick_gelu")]
)
def test_units_have_the_activation_of_the_model_unless_it_is_piecewise_linear(name, activation):
    assert hf_saddle.growable(stock_model(name)).config.skip_activation == activation


# ------------------------------------------------------------------------------------------------- saving and loading
@every_case
def test_saved_and_loaded_by_the_auto_class(name, tmp_path):
    model, batch = grown_model(name), inputs(name)
    model.growth_history = {"events": []}
    model.save_pretrained(tmp_path)
    # AutoBackbone of transformers reads repos only.
    auto = type(model) if CASES[name][1] == "AutoBackbone" else getattr(transformers, CASES[name][1])
    again, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model) and not any(info[key] for key in ("missing_keys", "unexpected_keys"))
    assert again.config == model.config == AutoConfig.from_pretrained(tmp_path)
    assert again.growth_history == model.growth_history
    assert_equal(outputs(aligned(again), batch), outputs(model, batch))


@pytest.mark.parametrize("row", [row for row in ROWS if row in FAMILIES])
def test_heads_start_anew_or_are_left_over(row, tmp_path):
    start, ends, fields, *_ = ROWS[row]
    base, *others = (saddle(f"{start}{end}") for end in ends.split())
    body = base(base.config_class(**fields))
    body.save_pretrained(tmp_path / "body")
    for kind in others:
        whole = kind(kind.config_class(**fields))
        whole.save_pretrained(tmp_path / kind.__name__)
        assert_same_layers(kind.from_pretrained(tmp_path / "body"), body)
        if kind.__name__.endswith("Backbone"):  # has not all of the base
            continue
        if kind.base_model_prefix == base.base_model_prefix:
            assert_same_layers(base.from_pretrained(tmp_path / kind.__name__), whole)
        else:  # the base of stock starts at random then
            with pytest.raises(ValueError, match="lacks tensors"):
                base.from_pretrained(tmp_path / kind.__name__)


def assert_same_layers(found, wanted):
    layers = list(zip(found.growable_linears(), wanted.growable_linears(), strict=True))
    assert layers and all(torch.equal(one.module.weight, other.module.weight) for one, other in layers)


@every_case
def test_stock_classes_refuse_what_has_grown(name, tmp_path):
    model = grown_model(name)
    model.save_pretrained(tmp_path)
    # As `Trainer` reads the file when it resumes.
    PreTrainedConfig.from_json_file(tmp_path / "config.json")
    with pytest.raises(RuntimeError, match="is a per-layer attribute"):
        model.stock_class.from_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config == model.config


@every_case
def test_larger_and_smaller_checkpoints_are_loaded_in_place(name):
    batch, grown = inputs(name), grown_model(name)
    model = saddle(name).from_stock(stock_model(name))
    small, before = {key: value.clone() for key, value in model.state_dict().items()}, outputs(model, batch)
    kept = {key: parameter for key, parameter in model.named_parameters() if "embed" in key}
    model.load_state_dict(grown.state_dict())
    assert_equal(outputs(model, batch), outputs(grown, batch))
    assert model.shapes() == grown.shapes()
    assert all(getattr(model.config, key) == getattr(grown.config, key) for key in ("widths", "skip_sizes"))
    model.load_state_dict(small)
    assert_equal(outputs(model, batch), before)
    assert model.config.widths is None and model.config.skip_sizes is None
    assert all(parameter is kept[key] for key, parameter in model.named_parameters() if key in kept)


@every_family
def test_folders_of_stock_models_are_converted(name, tmp_path):
    stock, batch = stock_model(name), inputs(name)
    stock.save_pretrained(tmp_path)
    assert_equal(outputs(saddle(name).from_stock(tmp_path), batch), outputs(stock, batch))


@every_family
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles(name, copied):
    model, batch = grown_model(name), inputs(name)
    twin = copied(model)
    assert_equal(outputs(twin, batch), outputs(model, batch))
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(next(twin.parameters()), next(model.parameters()))


@every_family
def test_what_ends_the_constructor_initialises_nothing_anew(name):
    """Upstream, too, it may be called again, as after other embeddings have been put in."""
    model = grown_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.post_init()
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])] == []


@every_case
@pytest.mark.parametrize("grown", [False, True], ids=["ungrown", "grown"])
def test_models_that_are_made_anew_begin_as_those_of_stock(name, grown):
    """Values that are not drawn are the same, others as far spread; but for a DeiT's tokens, which stock has at 0."""
    torch.manual_seed(0)
    kind, fields = getattr(transformers, name), CASES[name][2]
    first, second = (dict(kind(kind.config_class(**fields)).named_parameters()) for _ in range(2))
    shapes = grown_shapes(hf_saddle.growable(stock_model(name))) if grown else {}
    model = saddle(name)(saddle(name).config_class(**fields, **shapes))
    for key, found in model.named_parameters():
        if ".skip." in key or (CASES[name][0] == "deit" and key.endswith(("token", "position_embeddings"))):
            continue
        if torch.equal(first[key], second[key]):
            assert torch.equal(found[: len(first[key])], first[key][: len(found)]), key
        elif found.numel() > 200:
            assert 0.8 < found.std() / first[key].std() < 1.25, key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@every_family
def test_a_checkpoint_is_loaded_in_other_precisions(name, dtype, tmp_path):
    model = grown_model(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=dtype)
    for (key, one), other in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        kept = torch.float32 if re.search(r"\.wo\b", key) and dtype is torch.float16 else dtype  # as in stock T5
        assert torch.equal(one, other.to(kept) if other.is_floating_point() else other), key


@every_family
def test_models_of_the_meta_device_are_initialised_as_others(name):
    model = grown_model(name)
    with torch.device("meta"):
        again = type(model)(model.config)
    again.to_empty(device="cpu").init_weights()
    fresh = dict(type(model)(model.config).named_buffers())
    for key, buffer in again.named_buffers():
        assert torch.equal(buffer, fresh[key]), key
    assert not any(value.any() for key, value in again.state_dict().items() if key.endswith("skip.gain"))


@every_family
def test_a_damaged_checkpoint_leaves_the_model_as_it_was(name):
    model, grown, batch = saddle(name).from_stock(stock_model(name)), grown_model(name), inputs(name)
    expected, state = outputs(model, batch), grown.state_dict()
    weight = next(key for key in state if key.endswith("skip.linear.weight"))
    with pytest.raises(ValueError, match=re.escape(weight.removesuffix("linear.weight"))):
        model.load_state_dict(state | {weight: state[weight][:-1]})
    assert_equal(outputs(model, batch), expected)


@every_family
def test_a_branch_that_was_taken_away_is_noticed(name):
    model, batch = grown_model(name), inputs(name)
    outputs(model, batch)
    path = next(site.path for site in model.growable_linears())
    parent, _, last = path.rpartition(".")
    plain = nn.Identity()
    plain.weight = model.get_submodule(path).weight
    setattr(model.get_submodule(parent), last, plain)
    with pytest.raises(ValueError, match="an Identity without it has taken its place|a Identity without"):
        outputs(model, batch)


# ------------------------------------------------------------------------------------------------- what models can do
@every_family
def test_hidden_states_and_attentions_are_recorded_as_by_stock(name):
    stock, batch = stock_model(name, **EAGER), inputs(name)
    options = {"output_hidden_states": True}
    if CASES[name][0] not in WITHOUT_ATTENTIONS:
        options["output_attentions"] = True
    wanted = {key: len(value) for key, value in stock(**batch, **options).items() if isinstance(value, tuple)}
    model = grown_model(name, **EAGER)
    found = {key: len(value) for key, value in model(**batch, **options).items() if isinstance(value, tuple)}
    assert found == wanted and any("hidden_states" in key for key in wanted)


@pytest.mark.parametrize("name", GENERATING)
def test_generation_with_a_cache_is_that_without(name):
    model, batch = grown_model(name), inputs(name)
    batch.pop("decoder_input_ids", None)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    cached, plain = (
        GenerationMixin.generate(model, **batch, use_cache=use, **options)  # Whisper's own calls a deprecated form
        for use in (True, False)
    )
    assert torch.equal(cached.sequences, plain.sequences)
    for one, other in zip(cached.scores, plain.scores, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def losses(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    found = model(**batch, return_dict=True)
    sum(value.square().mean() for value in found.values() if isinstance(value, torch.Tensor)).backward()
    return {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}


@every_family
def test_gradients_with_checkpointing_are_those_without(name):
    model = grown_model(name).double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in inputs(name).items()}
    if not model.supports_gradient_checkpointing:
        pytest.skip("stock has no gradient checkpointing")
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    wanted = losses(model, batch)
    getattr(model, CHECKPOINTING)()
    found = losses(model, batch)
    assert found.keys() == wanted.keys() and any(".skip." in key for key in found)
    for key, gradient in found.items():  # the same sums, but not always in the same order, as with stock
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-10, atol=1e-12)


WITHOUT_CACHE = {"use_cache": False}  # which is no tensor, but an object that a compiled model returns


def compiled(name: str, backend: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of a grown model as one graph, and without one."""
    torch.compiler.reset()
    model, batch = grown_model(name, **one_block(name)), inputs(name)
    options = WITHOUT_CACHE if hasattr(model.config, "use_cache") else {}
    return outputs(torch.compile(model, backend=backend, fullgraph=True), batch, **options), outputs(
        model, batch, **options
    )


@every_family_slowly
def test_grown_models_are_one_graph(name):
    found, wanted = compiled(name, "eager")
    assert_equal(found, wanted)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "ResNetModel", "LlamaForCausalLM"])
def test_grown_models_compile(name):
    found, wanted = compiled(name, "aot_eager")
    torch.testing.assert_close(found, wanted)


def rounding(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    """How much the outputs of a model differ for being computed in half precision, of the same weights and inputs."""
    half = {key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in batch.items()}
    found = outputs(model.to(torch.bfloat16), half)
    assert {tensor.dtype for tensor in found} == {torch.bfloat16}
    exact = {key: value.double() if value.is_floating_point() else value for key, value in half.items()}
    pairs = zip(found, outputs(model.double(), exact), strict=True)
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


@every_family
def test_half_precision_rounds_a_grown_model_as_it_rounds_stock(name):
    """Branches are a second sum for each neuron; values that are lost or infinite would be of order one or NaN."""
    assert rounding(grown_model(name), inputs(name)) < 4 * rounding(stock_model(name), inputs(name)) < 0.4


@every_family
def test_half_precision_and_devices_are_kept_by_a_conversion(name):
    model = hf_saddle.growable(stock_model(name).to(torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_blocks_are_in_the_order_of_the_forward_pass():
    model = hf_saddle.growable(stock_model("SwinForImageClassification"))
    paths = [path for path, _ in blocks_in(model.base_model, model.config)]
    assert paths == [f"encoder.layers.{stage}.blocks.{block}" for stage in range(2) for block in range(2)]
