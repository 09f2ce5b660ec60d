"""Small models from scratch: every family of every task makes one, and language models write beyond their samples."""

import pytest
import torch
from transformers.pipelines import TextGenerationPipeline

from hf_saddle.demo.architectures import DECODERS, TEXT, VISION
from hf_saddle.demo.arguments import ModelAndDataArguments
from hf_saddle.demo.tasks import TASKS
from hf_saddle.demo.text import train_tokenizer
from hf_saddle.models import GrowablePreTrainedModel


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": 300, "block_size": 32}
CASES = [("image-classification", name) for name in VISION] + [("text-classification", name) for name in TEXT]
CASES += [("causal-lm", name) for name in DECODERS]


def model_of(task: str, architecture: str) -> GrowablePreTrainedModel:
    arguments = ModelAndDataArguments(task=task, architecture=architecture, image_size=32, **SIZES)
    tokenizer = None if task == "image-classification" else train_tokenizer(["some text"], 300, enclose=False)
    model_type, fields = TASKS[task].fields(arguments, tokenizer)
    kind = TASKS[task].model_class(model_type)
    torch.manual_seed(0)
    return kind(kind.config_class(**fields)).eval()


@pytest.mark.parametrize("task, architecture", CASES)
def test_a_small_model_of_every_family_answers(task, architecture):
    model = model_of(task, architecture)
    batch = {"pixel_values": torch.ones(2, 3, 32, 32)}
    if task != "image-classification":
        batch = {"input_ids": torch.full((2, SIZES["block_size"]), 7)}
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()
    hidden = [site for site in model.growable_linears() if site.neurons is not None]
    assert all(site.module.neurons == SIZES["intermediate_size"] for site in hidden) or task == "image-classification"


@pytest.mark.parametrize("architecture", DECODERS)
def test_language_models_write_as_much_as_a_pipeline_asks_for(architecture):
    new = TextGenerationPipeline._default_generation_config.max_new_tokens
    model = model_of("causal-lm", architecture)
    prompt = torch.randint(5, model.config.vocab_size, (1, SIZES["block_size"]))
    # Rotary positions have no end of their own: theirs is only what the config says.
    assert model.config.max_position_embeddings >= prompt.shape[1] + new
    found = model.generate(prompt, max_new_tokens=new, do_sample=False, eos_token_id=None)
    assert found.shape == (1, prompt.shape[1] + new)
