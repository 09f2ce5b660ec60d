"""Quantisers of transformers on saved models: branches are kept or refused before weights are read."""

import pytest
import torch
from families_cases import assert_equal, every_family, grown_model, inputs, outputs
from model_cases import GROWN, build, output
from test_branch_guard import Quantised
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_saddle.models import SaddleViTForImageClassification


PIXELS = torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(0))
WIDE = {0: {"intermediate_size": 50}}


class StandInConfig(QuantizationConfigMixin):
    def __init__(self, exact=False, modules_to_not_convert=(), **kwargs):
        self.quant_method = "stand-in"
        self.exact, self.modules_to_not_convert = exact, list(modules_to_not_convert)


class StandIn(HfQuantizer):
    """Exchanges linears before the weights are read, as quanto, GPTQ, AWQ do, or only plain ones, as bitsandbytes."""

    is_trainable = False

    def is_serializable(self):
        return False

    def _process_model_before_weight_loading(self, model, **kwargs):
        config = self.quantization_config
        for path, module in list(model.named_modules()):
            kept = any(path.startswith(name) for name in config.modules_to_not_convert)
            if not kept and (type(module) is nn.Linear if config.exact else isinstance(module, nn.Linear)):
                model.set_submodule(path, Quantised(module))


@pytest.fixture
def quantiser(monkeypatch):
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "stand-in", StandInConfig)
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "stand-in", StandIn)
    return StandInConfig


@pytest.fixture
def unread(monkeypatch):
    """Fail a test in which weights are read."""
    read = staticmethod(lambda *args, **kwargs: pytest.fail("weights were read"))
    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", read)


def saved(folder, grown):
    model = build(SaddleViTForImageClassification, grown)
    model.save_pretrained(folder)
    return model


def load(folder, config):
    return SaddleViTForImageClassification.from_pretrained(folder, quantization_config=config)


@pytest.mark.parametrize("grown", [GROWN, {0: {"skip_sizes": {"mlp.fc2": [3]}}}], ids=["nested", "flat"])
def test_branches_are_refused_before_weights_are_read(tmp_path, unread, quantiser, grown):
    saved(tmp_path, grown)
    with pytest.raises(ValueError, match="Quantised.*has taken.*modules_to_not_convert"):
        load(tmp_path, quantiser())


def test_branches_that_are_named_are_kept(tmp_path, quantiser):
    model = saved(tmp_path, GROWN)
    named = [site.path for site in model.growable_linears() if site.module.skip is not None]
    loaded = load(tmp_path, quantiser(modules_to_not_convert=named))
    assert sum(isinstance(module, Quantised) for module in loaded.vit.modules()) == 12 - 6
    assert torch.equal(output(loaded, PIXELS), output(model, PIXELS))


@pytest.mark.parametrize("grown", [None, WIDE], ids=["ungrown", "wide"])
def test_models_without_branches_are_quantised_as_stock_ones(tmp_path, quantiser, grown):
    model = saved(tmp_path, grown)
    loaded = load(tmp_path, quantiser())
    assert sum(isinstance(module, Quantised) for module in loaded.vit.modules()) == 12
    assert torch.equal(output(loaded, PIXELS), output(model, PIXELS))


def test_a_quantiser_that_passes_over_all_linears_is_refused(tmp_path, unread, quantiser):
    saved(tmp_path, WIDE)
    with pytest.raises(ValueError, match="stand-in has left every growable linear.*--to stock"):
        load(tmp_path, quantiser(exact=True))


# Quantisers do not touch convolutions, of stock models either.
ONLY_CONVOLUTIONS = ("ResNetBackbone", "ResNetModel", "ResNetForImageClassification")


@every_family
@pytest.mark.parametrize("exact", [False, True], ids=["subclasses too", "nn.Linear only"])
def test_grown_models_of_every_family_are_refused(name, exact, tmp_path, request, quantiser):
    model = grown_model(name)
    model.save_pretrained(tmp_path)
    if name in ONLY_CONVOLUTIONS:
        again = type(model).from_pretrained(tmp_path, quantization_config=quantiser(exact))
        assert_equal(outputs(again, inputs(name)), outputs(model, inputs(name)))
        return
    request.getfixturevalue("unread")
    with pytest.raises(ValueError, match="modules_to_not_convert|--to stock"):
        type(model).from_pretrained(tmp_path, quantization_config=quantiser(exact))


@every_family
def test_bitsandbytes_is_refused_by_grown_models_of_every_family(name, tmp_path, request):
    pytest.importorskip("bitsandbytes")
    model = grown_model(name)
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=True)
    if name in ONLY_CONVOLUTIONS:
        again = type(model).from_pretrained(tmp_path, quantization_config=config)
        assert again.shapes() == model.shapes()
        return
    request.getfixturevalue("unread")
    with pytest.raises(ValueError, match="modules_to_not_convert|--to stock"):
        type(model).from_pretrained(tmp_path, quantization_config=config)
