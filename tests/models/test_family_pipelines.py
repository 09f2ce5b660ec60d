"""Pipelines of every task answer as those of stock, whose outputs branches without a gain keep."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families_cases import CASES, aligned, assert_equal, inputs, randomize_, stock_model
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoBackbone,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
    WhisperFeatureExtractor,
    WhisperTokenizer,
    pipeline,
)

import hf_saddle
from hf_saddle.growth import GrowthPlan, LayerGrowth, grow_


TASKS = {
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageClassification": "image-classification",
    "AutoModel": "image-feature-extraction",
    "AutoModelForAudioClassification": "audio-classification",
}
# Whisper's decoder alone is not what a pipeline generates text with, and transformers reads every tokenizer beside a
# stock Qwen2 as that of Qwen2.
WITHOUT = ("WhisperForCausalLM", "Qwen2ForCausalLM")
NAMES = [name for name, (_, auto, *_) in CASES.items() if auto in TASKS and name not in WITHOUT]
GREEDY = {"max_new_tokens": 6, "do_sample": False}
ARGUMENTS: dict[str, Any] = {"text-generation": GREEDY}


def grown_and_stock(name: str, folder: Path) -> dict[str, PreTrainedModel]:
    """A stock model, and the same grown without a change of its outputs; both are saved under their kinds."""
    stock = stock_model(name)
    stock.save_pretrained(folder / "stock")
    model = getattr(hf_saddle, f"Saddle{name}").from_stock(stock)
    sites = list(model.growable_linears())
    grow_(model, GrowthPlan(tuple(LayerGrowth.by_hand(model, site.path, "zero_gain", [0, 2, 1]) for site in sites)))
    model.save_pretrained(folder / "grown")
    return {"stock": stock, "grown": model}


def save_preprocessors(folder: Path, size: int) -> None:
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(97)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "w0", "bos_token": "w1", "eos_token": "w2", "mask_token": "w4"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **special).save_pretrained(folder)
    if size:
        ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    else:
        WhisperFeatureExtractor(feature_size=8, hop_length=400, chunk_length=1).save_pretrained(folder)


def question(task: str) -> Any:
    if "image" in task:
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    if "audio" in task:
        return np.random.default_rng(0).normal(size=16000).astype(np.float32)
    return "w5 w60 w4 w7" if task == "fill-mask" else "w5 w60 w7"


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_answers_as_that_of_stock(name, tmp_path):
    task = TASKS[CASES[name][1]]
    found = {}
    for kind, model in grown_and_stock(name, tmp_path).items():
        size = {"pixels": 16, "large_pixels": 32}.get(CASES[name][3].__name__[1:], 0)
        save_preprocessors(tmp_path / kind, size)
        pipe = pipeline(task, model=str(tmp_path / kind))
        assert type(pipe.model) is type(model)
        found[kind] = pipe(question(task), **ARGUMENTS.get(task, {}))
    assert found["grown"] == found["stock"] and found["stock"]


@pytest.mark.parametrize("name", ["BertForMaskedLM", "LlamaForCausalLM"])
def test_features_of_texts_are_those_of_stock(name, tmp_path):
    found = {}
    for kind, model in grown_and_stock(name, tmp_path).items():
        save_preprocessors(tmp_path / kind, 0)
        pipe = pipeline("feature-extraction", model=str(tmp_path / kind))
        assert type(pipe.model) is type(model.base_model)
        found[kind] = pipe("w5 w60 w7")
    assert found["grown"] == found["stock"] and len(found["stock"][0][0]) == 32


def test_texts_are_told_apart_by_descriptions_as_by_stock(tmp_path):
    found = {}
    for kind, model in grown_and_stock("BertForSequenceClassification", tmp_path).items():
        model.config.id2label = {0: "contradiction", 1: "entailment"}
        model.config.label2id = {"contradiction": 0, "entailment": 1}
        model.config.save_pretrained(tmp_path / kind)
        save_preprocessors(tmp_path / kind, 0)
        pipe = pipeline("zero-shot-classification", model=str(tmp_path / kind))
        assert type(pipe.model) is type(model)
        found[kind] = pipe("w5 w60 w7", candidate_labels=["w8", "w9 w10"], hypothesis_template="w11 {}")
    assert found["grown"] == found["stock"] and len(found["stock"]["scores"]) == 2


ANSWERS = {"start_positions": torch.tensor([1, 4, 7]), "end_positions": torch.tensor([2, 4, 9])}
# What has no pipeline: what such models are called with, beside their inputs.
CALLS: dict[str, dict[str, Any]] = {
    "BertForMultipleChoice": {"labels": torch.tensor([0, 1, 1])},
    "DistilBertForQuestionAnswering": ANSWERS,
    "LlamaForQuestionAnswering": ANSWERS,
    "ViTForMaskedImageModeling": {"bool_masked_pos": torch.arange(48).reshape(3, 16) % 3 == 0},
    "T5ForConditionalGeneration": {"labels": torch.tensor([[5, 6, 7, 8, 9, -100]] * 3)},
    "ResNetBackbone": {},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_model_without_a_pipeline_answers_as_that_of_stock(name, tmp_path):
    found, auto = {}, getattr(transformers, CASES[name][1])
    for kind, model in grown_and_stock(name, tmp_path).items():
        # AutoBackbone of transformers reads repos only.
        loaded = (type(model) if name == "ResNetBackbone" else auto).from_pretrained(tmp_path / kind)
        assert type(loaded) is type(model)
        with torch.no_grad():
            found[kind] = aligned(loaded)(**inputs(name) | CALLS[name])
    assert found["grown"].keys() == found["stock"].keys() and ("loss" in found["stock"]) == bool(CALLS[name])
    for key, wanted in found["stock"].items():
        if key != "past_key_values":
            assert_equal(tensors(found["grown"][key]), tensors(wanted))


def tensors(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("name", ["ResNetBackbone", "ConvNextBackbone", "SwinBackbone", "Dinov2Backbone"])
def test_auto_backbone_makes_a_grown_backbone_of_a_config(name):
    """So that detectors and segmenters take it for theirs."""
    case = next(case for case in CASES if name.removesuffix("Backbone") in case)
    kind, stages = getattr(transformers, name), {"out_features": ["stage1", "stage2"]}
    stock = kind(kind.config_class(**CASES[case][2] | stages)).eval()
    randomize_(stock)
    pixels = inputs(case)["pixel_values"]
    with torch.no_grad():
        wanted = stock(pixels).feature_maps
        model = hf_saddle.growable(stock)
        sites = list(model.growable_linears())
        grow_(model, GrowthPlan(tuple(LayerGrowth.by_hand(model, site.path, "zero_gain", [1, 0]) for site in sites)))
        backbone = AutoBackbone.from_config(model.config).eval()
        backbone.load_state_dict(model.state_dict())
        assert type(backbone) is getattr(hf_saddle, f"Saddle{name}") and backbone.channels == stock.channels
        assert_equal(list(backbone(pixels).feature_maps), list(wanted))


def test_texts_are_written_from_others_as_by_stock(tmp_path):
    """Beam search of an encoder-decoder, which has no pipeline of its own any more."""
    found = {}
    for kind in grown_and_stock("T5ForConditionalGeneration", tmp_path):
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / kind)
        batch = {key: value for key, value in inputs("T5ForConditionalGeneration").items() if "decoder" not in key}
        found[kind] = model.generate(**batch, num_beams=3, max_new_tokens=8)
    assert torch.equal(found["grown"], found["stock"])


# Tokens of their own, in the order of Whisper's: of letters, of what came before, and of times, 0.05 s apart.
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())[: 97 - 3 - 2 - 21]
SPEECH = ["<|pad|>", "<|startoftranscript|>", "<|endoftext|>", *LETTERS, "<|startofprev|>", "<|notimestamps|>"]
SPEECH += [f"<|{index / 20:.2f}|>" for index in range(21)]
LISTENING = {"no_timestamps_token_id": SPEECH.index("<|notimestamps|>"), "is_multilingual": False}
LISTENING |= {"prev_sot_token_id": SPEECH.index("<|startofprev|>"), "max_initial_timestamp_index": 5}


def sound(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(size=int(16000 * seconds)).astype(np.float32)


def recognisers(folder: Path) -> dict[str, Any]:
    """Pipelines of a stock and of a grown Whisper."""
    found = {}
    for kind, model in grown_and_stock("WhisperForConditionalGeneration", folder).items():
        vars(model.generation_config).update(LISTENING, _from_model_config=False)
        model.generation_config.save_pretrained(folder / kind)
        words = WhisperTokenizer(vocab={word: index for index, word in enumerate(SPEECH)}, merges=[])
        words.add_special_tokens({"pad_token": SPEECH[0], "additional_special_tokens": [SPEECH[1], *SPEECH[-23:-21]]})
        words.save_pretrained(folder / kind)
        WhisperFeatureExtractor(feature_size=8, hop_length=400, chunk_length=1).save_pretrained(folder / kind)
        found[kind] = pipeline("automatic-speech-recognition", model=str(folder / kind))
        assert type(found[kind].model) is type(model)
    return found


@pytest.mark.parametrize("seconds", [0.8, 2.6], ids=["short", "long"])
@pytest.mark.parametrize("times", [False, True], ids=["", "with times"])
def test_speech_is_recognised_as_by_stock(seconds, times, tmp_path, deprecations):
    found = {
        kind: pipe(sound(seconds), return_timestamps=times or seconds > 1, generate_kwargs={"max_new_tokens": 12})
        for kind, pipe in recognisers(tmp_path).items()
    }
    assert found["grown"] == found["stock"] and found["stock"]["text"]
    assert ("chunks" in found["stock"]) == (times or seconds > 1)
    deprecations.clear()  # of what transformers' own pipeline passes on


def test_what_came_before_is_a_prompt_as_for_stock(tmp_path, deprecations):
    found = {}
    for kind, pipe in recognisers(tmp_path).items():
        features = pipe.feature_extractor(sound(0.8), sampling_rate=16000, return_tensors="pt")["input_features"]
        before = torch.tensor([LISTENING["prev_sot_token_id"], 10, 20, 30])
        found[kind] = pipe.model.generate(features, prompt_ids=before, max_new_tokens=8, num_beams=1)
    assert torch.equal(found["grown"], found["stock"])
    deprecations.clear()
