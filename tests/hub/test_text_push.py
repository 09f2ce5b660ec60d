"""A language model on the Hub: its tokenizer goes with it, and its card speaks of texts."""

import re

import hub_client as actions
import numpy as np
import pytest
from huggingface_hub import ModelCard

from hf_saddle.demo.text import train_tokenizer
from hf_saddle.growth import GrowthPlan, LayerGrowth, grow_
from hf_saddle.models import SaddleLlamaForCausalLM


pytestmark = pytest.mark.hub

TEXTS = ["the small model grows", "where the loss bends", "once upon a time"]
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
FILES = {"README.md", "config.json", "growth_history.json", "model.safetensors", "modeling_saddle.py", *TOKENIZER}


def pushed_by_command(client, folder):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    tokens = {"vocab_size": 270, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = SaddleLlamaForCausalLM(SaddleLlamaForCausalLM.config_class(**sizes, **tokens))
    first = next(site.path for site in model.growable_linears())
    grow_(model, GrowthPlan((LayerGrowth.by_hand(model, first, "zero_gain", [0, 1]),)))
    model.save_pretrained(folder)
    train_tokenizer(TEXTS, 270, enclose=False).save_pretrained(folder)
    code, _, errors = client(actions.command, "push", str(folder), "tester/by-command")
    assert code == 0, errors
    return "tester/by-command"


def pushed_by_trainer(client, folder):
    client(actions.train_text_and_push, str(folder), "tester/by-trainer")
    return "tester/by-trainer"


@pytest.mark.parametrize("push", [pushed_by_command, pushed_by_trainer], ids=["command", "trainer"])
def test_a_language_model_is_pushed_as_one(push, hub, client, stranger, tmp_path):
    repo = push(client, tmp_path / "model")
    files = hub.repos[repo].files()
    assert set(files) >= FILES
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "text-generation"
    assert {"text", "llama", "hf-saddle"} <= set(card.data.tags) and "vision" not in card.data.tags
    assert not re.search(r"\b(image|pixel|picture of|vision)", card.text, re.IGNORECASE)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert f'AutoTokenizer.from_pretrained("{repo}")' in code
    # The reader has no hf_saddle, and nothing but the repo.
    assert "Once upon a time" in stranger(actions.run_code, code, str(tmp_path))


def test_the_pushed_model_computes_what_the_trained_one_did(hub, client, stranger, tmp_path):
    result = client(actions.train_text_and_push, str(tmp_path), "tester/computes")
    (output, *_), module, _ = stranger(
        actions.outputs, "AutoModelForCausalLM", "tester/computes", result["inputs"], trust_remote_code=True
    )
    assert module.startswith("transformers_modules.") and np.array_equal(output, result["logits"])
