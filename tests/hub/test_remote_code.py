"""A pushed model loads with its own code where hf_saddle is not installed, and without that code where it is."""

import hub_client as actions
import numpy as np
import pytest
import torch
from hub_cases import MODELS, build


pytestmark = pytest.mark.hub


# The others are the same code in other shapes.
QUICK = ("deit-ungrown", "deit-deeper", "vit-deeper-and-wider")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS],
)
def pushed(request, hub, client, tmp_path_factory):
    model = build(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    client(actions.push, str(folder), f"tester/{request.param}")
    return model, f"tester/{request.param}"


def expected(model, pixels) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(pixels)).logits.numpy()


def test_loads_without_hf_saddle(pushed, stranger, pixels):
    model, repo = pushed
    output, _, module = stranger(actions.logits, repo, pixels, trust_remote_code=True)
    assert module.startswith("transformers_modules.")
    assert np.array_equal(output, expected(model, pixels))


def test_loads_with_hf_saddle_and_no_remote_code(pushed, client, pixels):
    model, repo = pushed
    output, _, module = client(actions.logits, repo, pixels)
    assert module.startswith("hf_saddle.models.")
    assert np.array_equal(output, expected(model, pixels))


def test_saved_again_it_still_loads(pushed, stranger, pixels, folder):
    model, repo = pushed
    stranger(actions.save_again, repo, str(folder), trust_remote_code=True)
    output, _, module = stranger(actions.logits, str(folder), pixels, trust_remote_code=True)
    assert module.startswith("transformers_modules.")
    assert np.array_equal(output, expected(model, pixels))


def test_the_bare_encoder_of_a_classifier_loads(pushed, stranger, pixels):
    encoder, own = stranger(actions.features, pushed[1], pixels, trust_remote_code=True)
    assert np.array_equal(encoder, own)


def test_without_trust_the_reader_is_told_how(pushed, stranger, pixels):
    failure = stranger.failure(actions.logits, pushed[1], pixels, trust_remote_code=False)
    assert "ValueError" in failure.kinds
    assert "trust_remote_code" in failure.message
