"""Pipelines, but that of recognising speech, answer as those of stock, whose outputs branches without a gain keep."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families_cases import CASES, stock_model
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
    WhisperFeatureExtractor,
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
# Whisper's decoder alone is not what a pipeline generates text with.
NAMES = [name for name, (_, auto, *_) in CASES.items() if auto in TASKS and name != "WhisperForCausalLM"]
GREEDY = {"max_new_tokens": 6, "do_sample": False}
ARGUMENTS: dict[str, Any] = {"text-generation": GREEDY}


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


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_answers_as_that_of_stock(name, tmp_path):
    task = TASKS[CASES[name][1]]
    stock = stock_model(name)
    stock.save_pretrained(tmp_path / "stock")
    model = getattr(hf_saddle, f"Saddle{name}").from_stock(stock)
    sites = list(model.growable_linears())
    grow_(model, GrowthPlan(tuple(LayerGrowth.by_hand(model, site.path, "zero_gain", [0, 2, 1]) for site in sites)))
    model.save_pretrained(tmp_path / "grown")
    found = {}
    for kind in ("stock", "grown"):
        size = {"pixels": 16, "large_pixels": 32}.get(CASES[name][3].__name__[1:], 0)
        save_preprocessors(tmp_path / kind, size)
        pipe = pipeline(task, model=str(tmp_path / kind))
        assert type(pipe.model) is (type(stock) if kind == "stock" else type(model))
        found[kind] = pipe(question(task), **ARGUMENTS.get(task, {}))
    assert found["grown"] == found["stock"] and found["stock"]
