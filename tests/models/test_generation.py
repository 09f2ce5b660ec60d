"""Every way in which grown language models generate, against the plain one: eager attention and no cache."""

import logging
from typing import Any

import pytest
import torch
from families_cases import grown_model, inputs, randomize_, stock_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, pipeline


CAUSAL = ("GPT2LMHeadModel", "LlamaForCausalLM", "Gemma3ForCausalLM")
every_model = pytest.mark.parametrize("name", [*CAUSAL, "T5ForConditionalGeneration"])
PLAIN = {"use_cache": False}
# Random models whose embeddings are tied, or large, repeat one token.
LIVELY: dict[str, dict[str, Any]] = {name: {"tie_word_embeddings": False} for name in CAUSAL}
LIVELY["T5ForConditionalGeneration"] = {"tie_word_embeddings": False, "initializer_factor": 0.1}
COMMON = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}


def pair(name: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A grown model with fused attention, the same with eager attention, and a batch with padding on the left."""
    both = [grown_model(name, attn_implementation=kind, **LIVELY[name]) for kind in ("sdpa", "eager")]
    for model in both:
        randomize_(model, scale=0.3)
    return *both, {key: value for key, value in inputs(name).items() if not key.startswith("decoder")}


def generate(model: Any, batch: dict[str, torch.Tensor], **options: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**batch, **COMMON | {"output_logits": True, "do_sample": False} | options)


def assert_same(found: Any, wanted: Any) -> None:
    assert torch.equal(found.sequences, wanted.sequences)
    assert len(wanted.sequences[:, -8:].unique()) > 1
    for one, other in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@every_model
@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"do_sample": True, "top_k": 20, "temperature": 1.5},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
    ids=["static cache", "sampling", "beam search"],
)
def test_generation_is_the_plain_one(name, options):
    model, plain, batch = pair(name)
    wanted = {key: value for key, value in options.items() if key != "cache_implementation"}
    found = generate(model, batch, **options)
    assert_same(found, generate(plain, batch, **wanted, **PLAIN))
    assert ("Static" in repr(found.past_key_values)) == ("cache_implementation" in options)


@every_model
def test_padding_on_the_left_changes_nothing(name):
    model, plain, batch = pair(name)
    alone = {key: value[:1, 4:] for key, value in batch.items()}
    found, wanted = generate(model, batch), generate(plain, alone, **PLAIN)
    assert torch.equal(found.sequences[:1, -8:], wanted.sequences[:, -8:])
    for one, other in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(one[:1], other, rtol=1e-4, atol=1e-5)


@every_model
@pytest.mark.parametrize("grown_assistant", [False, True])
def test_assisted_decoding_is_the_plain_one(name, grown_assistant, monkeypatch):
    # For candidates, transformers calls its own `generate` in a form that it calls deprecated.
    monkeypatch.setattr(logging.getLogger("transformers.generation.utils"), "disabled", True)
    grown, plain, batch = pair(name)
    stock = stock_model(name, **LIVELY[name])
    randomize_(stock, scale=0.3)
    model, assistant = (stock, grown) if grown_assistant else (grown, stock)
    alone = {key: value[1:2] for key, value in batch.items()}
    found = generate(model, alone, assistant_model=assistant)
    assert_same(found, generate(stock if grown_assistant else plain, alone, **PLAIN))


def forward(model: Any, batch: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the last eight tokens, all at once."""
    if model.config.is_encoder_decoder:
        given = batch | {"decoder_input_ids": tokens[:, :-1]}
    else:
        mask = torch.ones_like(tokens[:, :-1])
        mask[:, :12] = batch["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given = {"input_ids": tokens[:, :-1], "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        return model(**given, **PLAIN).logits[:, -8:].float()


@every_model
def test_a_cache_in_half_precision_costs_no_more_than_half_precision(name):
    model, plain, batch = pair(name)
    found = generate(model.to(torch.bfloat16), batch)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    exact = forward(plain.to(torch.bfloat16).float(), batch, found.sequences)
    plainly = forward(model, batch, found.sequences) - exact
    cached = torch.stack(found.logits, 1) - exact
    assert 0 < cached.norm() < 2 * plainly.norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("name", CAUSAL)
def test_pipelines_generate_from_a_folder(name, tmp_path):
    model, plain, _ = pair(name)
    model.save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(97)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")
    tokenizer.save_pretrained(tmp_path)
    prompt = [5, 60, 7]
    options = {"max_new_tokens": 8, "do_sample": False, "return_tensors": True, "eos_token_id": None}
    found = pipeline("text-generation", model=str(tmp_path))("w5 w60 w7", **options)
    with torch.no_grad():
        for _ in range(8):
            prompt.append(int(plain(torch.tensor([prompt]), use_cache=False).logits[0, -1].argmax()))
    assert found == [{"generated_token_ids": prompt}]
