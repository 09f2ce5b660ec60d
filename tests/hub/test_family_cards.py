"""The card of a model of any family names its task, and its code runs."""

import re

import pytest
import torch
from hub_cases import log
from PIL import Image
from transformers import TrainerState, TrainingArguments

import hf_saddle.models as models
from hf_saddle.demo.text import train_tokenizer
from hf_saddle.growth import GrowthPlan, LayerGrowth, grow_
from hf_saddle.hub import TrainingRecord, render_model_card, write_model_card


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 2}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}
# class -> (config, task, tag, unit of multiply-accumulates)
CASES = {
    "LlamaForCausalLM": (SIZES | TOKENS, "text-generation", "text", "sequence of 128 tokens"),
    "BertForSequenceClassification": (SIZES | TOKENS, "text-classification", "text", "sequence of 128 tokens"),
    "BertForMaskedLM": (SIZES | TOKENS, "fill-mask", "text", "sequence of 128 tokens"),
    "BertModel": (SIZES | TOKENS, "feature-extraction", "text", "sequence of 128 tokens"),
    "T5ForConditionalGeneration": (T5 | TOKENS, "text2text-generation", "text", "pair of sequences of 128 tokens"),
    "ConvNextForImageClassification": (CONVNEXT, "image-classification", "vision", "image"),
}


def grown(name: str):
    kind = getattr(models, f"Saddle{name}")
    torch.manual_seed(0)
    model = kind(kind.config_class(**CASES[name][0])).eval()
    first = next(site.path for site in model.growable_linears())
    grow_(model, GrowthPlan((LayerGrowth.by_hand(model, first, "zero_gain", [0, 1]),)))
    return model


@pytest.mark.parametrize("name", CASES)
def test_the_card_names_the_task(name):
    _, task, tag, unit = CASES[name]
    card = render_model_card(grown(name), name="demo")
    assert card.data.pipeline_tag == task
    assert tag in card.data.tags and len({"text", "vision", "audio"} & set(card.data.tags)) == 1
    assert f"multiply-accumulates per {unit} |" in card.text
    if tag == "text":
        assert not re.search(r"\b(image|pixel|vision)", card.text, re.IGNORECASE)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_code_of_the_card_runs(name, processed, tmp_path, monkeypatch, capsys):
    model = grown(name)
    folder = tmp_path / "demo"
    model.save_pretrained(folder)
    if processed and CASES[name][2] == "text":
        train_tokenizer(["Once upon a time"], 300, enclose=False).save_pretrained(folder)
    card = write_model_card(folder, model)
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert ("AutoTokenizer" in code) == (processed and CASES[name][2] == "text")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 24), (200, 30, 30)).save("image.png")
    exec(code, {})
    # A model that was not trained may end its text at once.
    assert capsys.readouterr().out.strip() or (processed and ".generate(" in code)


def test_perplexity_is_a_result_of_language_models(tmp_path):
    model = grown("LlamaForCausalLM")
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=6, report_to="none", use_cpu=True)
    measured = [entry | {"eval_perplexity": 12.5} if "eval_loss" in entry else entry for entry in log()]
    record = TrainingRecord.of(model, args, TrainerState(log_history=measured), dataset="tester/texts")
    card = render_model_card(model, record, name="demo")
    (result,) = card.data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == ("text-generation", "perplexity", 12.5)
