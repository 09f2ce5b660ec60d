"""Saved models of several families load where hf_saddle is not installed, with every Auto class that fits."""

import sys
from pathlib import Path

import hub_client as actions
import pytest
import transformers


sys.path.append(str(Path(__file__).parents[1] / "models"))
from families_cases import CASES, grown_model, inputs, outputs  # noqa: E402


pytestmark = pytest.mark.hub

# Each kind of layer, gates, batch normalisation, two stacks of blocks, models that are their own base model.
NAMES = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "ResNetForImageClassification",
    "T5ForConditionalGeneration",
    "WhisperForConditionalGeneration",
    "BertForMaskedLM",
)
# What else a saved model is loaded as.
ALSO = {"GPT2LMHeadModel": ["AutoModelForPreTraining"], "T5ForConditionalGeneration": ["AutoModelForPreTraining"]}


@pytest.mark.parametrize("name", NAMES)
def test_loads_without_hf_saddle(name, stranger, tmp_path):
    model, batch = grown_model(name), inputs(name)
    model.save_pretrained(tmp_path / "first")
    wanted = [tensor.numpy() for tensor in outputs(model, batch)]
    given = {key: value.numpy() for key, value in batch.items()}
    for auto in (CASES[name][1], *ALSO.get(name, ())):
        found, module, kind = stranger(
            actions.outputs, auto, str(tmp_path / "first"), given, str(tmp_path / auto), trust_remote_code=True
        )
        assert module.startswith("transformers_modules.") and kind == f"Saddle{name}"
        assert len(found) == len(wanted) and all(
            (one == other).all() for one, other in zip(found, wanted, strict=True)
        )
        again = getattr(transformers, auto).from_pretrained(tmp_path / auto)
        assert type(again) is type(model)
        assert all((one.numpy() == other).all() for one, other in zip(outputs(again, batch), wanted, strict=True))
    _, module, kind = stranger(actions.outputs, "AutoModel", str(tmp_path / "first"), given, trust_remote_code=True)
    assert module.startswith("transformers_modules.") and kind == f"Saddle{base_name(name)}"


def base_name(name: str) -> str:
    config = getattr(transformers, name).config_class
    return transformers.MODEL_MAPPING[config].__name__


@pytest.mark.parametrize("name", NAMES[:1])
def test_without_trust_the_reader_is_told_how(name, stranger, tmp_path):
    grown_model(name).save_pretrained(tmp_path)
    failure = stranger.failure(actions.outputs, CASES[name][1], str(tmp_path), {}, trust_remote_code=False)
    assert "trust_remote_code" in failure.message
