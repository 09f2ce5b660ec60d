"""Models that grew in width only become stock ones, and stock ones growable again, of every family."""

import pytest
import torch
import transformers
from families_cases import CASES, grown_model, inputs, outputs, randomize_, stock_model

import hf_saddle
from hf_saddle.models import FAMILIES
from hf_saddle.models.heads import heads_of
from hf_saddle_cli.commands import Target
from hf_saddle_cli.convert import convert_model


OF_FAMILY = {model_type: name for name, (model_type, *_) in reversed(CASES.items())}
FIXED = [OF_FAMILY[model_type] for model_type in ("convnext", "resnet")]  # no field of their configs has the widths
HELD = [*(set(OF_FAMILY.values()) - set(FIXED)), "Dinov2Model", "WhisperForCausalLM", "WhisperForAudioClassification"]
GENERATING = ("GPT2LMHeadModel", "LlamaForCausalLM", "Gemma3ForCausalLM", "T5ForConditionalGeneration")


def wider_model(name, more=3, **fields):
    """A growable model of which every second group of neurons has more than stock."""
    plain = hf_saddle.growable(stock_model(name))
    hidden = [site for site in plain.growable_linears() if site.neurons is not None]
    plain.config.widths = {site.root: site.module.neurons + more for site in hidden[::2]}
    for field, value in fields.items():
        setattr(plain.config, field, value)
    torch.manual_seed(1)
    model = type(plain)(plain.config).eval()
    randomize_(model)
    return model


def zeros(model):
    return sum(int((parameter == 0).sum()) for parameter in model.parameters())


def assert_same(one, other, batch):
    """Equal but for the order in which BLAS adds up products, some of them zeros."""
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    found, wanted = outputs(one.double(), batch), outputs(other.double(), batch)
    assert len(found) == len(wanted) > 0
    for first, second in zip(found, wanted, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_families_say_where_the_width_of_their_neurons_is():
    assert all(len(family.widths) in (0, len(family.paths)) for family in FAMILIES.values())


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", sorted({*HELD, *GENERATING}))
def test_padded_stock_models_compute_the_same_and_become_growable_again(name, tmp_path):
    model, batch = wider_model(name), inputs(name)
    model.save_pretrained(tmp_path / "grown")
    difference, padding = convert_model(str(tmp_path / "grown"), tmp_path / "stock", Target.stock, None)
    stock, info = getattr(transformers, name).from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert type(stock) is getattr(transformers, name) and not info["missing_keys"] | info["unexpected_keys"]
    assert "saddle" not in (tmp_path / "stock" / "config.json").read_text().lower()
    assert padding == zeros(stock) - zeros(model) > 0 and difference < 1e-6
    if name in GENERATING:
        prompt = {key: value for key, value in batch.items() if not key.startswith("decoder")}
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(stock.generate(**prompt, **options), model.generate(**prompt, **options))
    assert convert_model(str(tmp_path / "stock"), tmp_path / "again", Target.saddle, None) == (0.0, 0)
    assert type(type(model).from_pretrained(tmp_path / "again")) is type(model)
    assert_same(stock, model, batch)


@pytest.mark.parametrize("name", FIXED)
def test_widths_that_no_stock_config_asks_for_are_refused(name, tmp_path):
    wider_model(name, more=0).save_pretrained(tmp_path / "ungrown")
    assert convert_model(str(tmp_path / "ungrown"), tmp_path / "stock", Target.stock, None) == (0.0, 0)
    assert convert_model(str(tmp_path / "stock"), tmp_path / "again", Target.saddle, None) == (0.0, 0)
    wider_model(name).save_pretrained(tmp_path / "grown")
    with pytest.raises(ValueError, match=r"neurons at encoder\.stages\.0.*always has.*trust_remote_code"):
        convert_model(str(tmp_path / "grown"), tmp_path / "out", Target.stock, None)
    assert not (tmp_path / "out").exists()


def test_branches_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"depth at model\.layers\.0\.self_attn\.q_proj.*trust_remote_code"):
        hf_saddle.to_stock(grown_model("LlamaForCausalLM"))


def test_conversions_keep_precision_mode_and_settings_of_generation(tmp_path):
    model = wider_model("GPT2LMHeadModel").to(torch.bfloat16)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path / "grown")
    assert convert_model(str(tmp_path / "grown"), tmp_path / "stock", Target.stock, None).difference < 1e-6
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert stock.dtype == torch.bfloat16 and stock.generation_config.max_new_tokens == 7
    assert hf_saddle.to_stock(model.train()).training


@pytest.mark.parametrize(
    "name, linear",
    [
        ("LlamaForCausalLM", "layers.0.mlp.gate_proj"),
        ("T5ForConditionalGeneration", "decoder.block.1.layer.0.SelfAttention.q"),
    ],
)
def test_residual_pairs_of_every_family_merge_exactly(name, linear, tmp_path):
    model = wider_model(name, skip_unit="residual_pair", skip_sizes={linear: [3]})
    model.save_pretrained(tmp_path / "pairs")
    assert convert_model(str(tmp_path / "pairs"), tmp_path / "merged", Target.merged, None) == (0.0, 0)
    merged = type(model).from_pretrained(tmp_path / "merged")
    for one, other in zip(outputs(merged, inputs(name)), outputs(model, inputs(name)), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="grown in depth"):
        hf_saddle.to_stock(merged)


def headed_model(name):
    """A growable model whose second attention module, and what it shares positions with, has one head more."""
    plain = hf_saddle.growable(stock_model(name))
    number, places = heads_of(plain.base_model), {each.root: each.stack or each.root for each in plain.attentions()}
    second = places[list(number)[1]]
    plain.config.heads = {root: number[root] + 1 for root, place in places.items() if place == second}
    model = type(plain)(plain.config).eval()
    randomize_(model)
    return model


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM"])
def test_heads_whose_number_is_free_are_padded(name):
    model, batch = headed_model(name), inputs(name)
    stock = hf_saddle.to_stock(model)
    assert type(stock) is getattr(transformers, name)
    assert len({layer.self_attn.k_proj.weight.shape for layer in stock.model.layers}) == 1
    assert_same(stock, model, batch)


def test_heads_of_t5_are_padded_everywhere():
    name = "T5ForConditionalGeneration"
    model = headed_model(name)
    assert set(model.config.heads.values()) == {5} and len(model.config.heads) == 2
    stock = hf_saddle.to_stock(model)
    assert type(stock) is transformers.T5ForConditionalGeneration and stock.config.num_heads == 8
    assert_same(stock, model, inputs(name))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "ViTForImageClassification", "BertForMaskedLM"])
def test_heads_that_no_config_of_stock_asks_for_are_refused(name):
    with pytest.raises(ValueError, match="The model has 5 heads at .*no field of its config"):
        hf_saddle.to_stock(headed_model(name))
