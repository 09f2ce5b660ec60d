"""Tiny stock models of every family, of many classes: adding a family is one line here."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from hf_saddle.models import FAMILIES, GrowablePreTrainedModel, SkipBranch


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = SIZES | {"vocab_size": 97, "max_position_embeddings": 64}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CAUSAL = TEXT | TOKENS | {"num_key_value_heads": 2}
GPT2 = TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97, "n_positions": 64}
DISTILBERT = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
IMAGE = SIZES | {"image_size": 16, "patch_size": 4, "num_labels": 3}
DINO = {name: value for name, value in IMAGE.items() if name != "intermediate_size"}
SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "image_size": 16, "patch_size": 2, "window_size": 2}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [2, 1], "num_stages": 2, "layer_scale_init_value": 1.0}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 16], "depths": [2, 1], "layer_type": "basic"}
BOTTLENECK = RESNET | {"hidden_sizes": [32, 32], "layer_type": "bottleneck", "hidden_act": "silu"}
WHISPER = TOKENS | {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 40,
    "begin_suppress_tokens": None,
    "decoder_start_token_id": 1,
}
T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _text() -> dict[str, Tensor]:
    tokens = torch.randint(3, 97, (3, 12), generator=_generator())
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0  # padding on the left, which suits generation too
    return {"input_ids": tokens, "attention_mask": mask}


def _choices() -> dict[str, Tensor]:
    return {name: tensor.unsqueeze(1).repeat(1, 2, 1) for name, tensor in _text().items()}


def _pixels(size: int = 16) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 3, size, size, generator=_generator())}


def _large_pixels() -> dict[str, Tensor]:
    return _pixels(32)


def _sequences() -> dict[str, Tensor]:
    return _text() | {"decoder_input_ids": _text()["input_ids"][:, :6]}


def _sound() -> dict[str, Tensor]:
    return {"input_features": torch.randn(3, 8, 40, generator=_generator())}


def _speech() -> dict[str, Tensor]:
    return _sound() | {"decoder_input_ids": _text()["input_ids"][:, :6]}


input_kinds: dict[str, Callable[[], dict[str, Tensor]]] = {
    "text": _text,
    "pixels": _pixels,
    "large_pixels": _large_pixels,
    "sequences": _sequences,
    "sound": _sound,
    "speech": _speech,
}

# class -> (model type, Auto class, config, inputs); one line for each family is enough for all tests.
CASES: dict[str, tuple[str, str, dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
    "BertForMaskedLM": ("bert", "AutoModelForMaskedLM", TEXT, _text),
    "BertForSequenceClassification": ("bert", "AutoModelForSequenceClassification", TEXT, _text),
    "BertForMultipleChoice": ("bert", "AutoModelForMultipleChoice", TEXT, _choices),
    "BertLMHeadModel": ("bert", "AutoModelForCausalLM", TEXT | TOKENS | {"is_decoder": True}, _text),
    "DistilBertForMaskedLM": ("distilbert", "AutoModelForMaskedLM", DISTILBERT, _text),
    "DistilBertForQuestionAnswering": ("distilbert", "AutoModelForQuestionAnswering", DISTILBERT, _text),
    "RobertaForTokenClassification": ("roberta", "AutoModelForTokenClassification", TEXT | TOKENS, _text),
    "RobertaForSequenceClassification": ("roberta", "AutoModelForSequenceClassification", TEXT | TOKENS, _text),
    "GPT2LMHeadModel": ("gpt2", "AutoModelForCausalLM", GPT2, _text),
    "GPT2ForSequenceClassification": ("gpt2", "AutoModelForSequenceClassification", GPT2, _text),
    "LlamaForCausalLM": ("llama", "AutoModelForCausalLM", CAUSAL | {"tie_word_embeddings": True}, _text),
    "LlamaForQuestionAnswering": ("llama", "AutoModelForQuestionAnswering", CAUSAL, _text),
    "MistralForTokenClassification": ("mistral", "AutoModelForTokenClassification", CAUSAL, _text),
    "MistralForCausalLM": ("mistral", "AutoModelForCausalLM", CAUSAL, _text),
    "Qwen2ForCausalLM": ("qwen2", "AutoModelForCausalLM", CAUSAL, _text),
    "Olmo2ForCausalLM": ("olmo2", "AutoModelForCausalLM", CAUSAL, _text),
    "Qwen3ForCausalLM": ("qwen3", "AutoModelForCausalLM", CAUSAL | {"head_dim": 8}, _text),
    "Gemma3ForCausalLM": ("gemma3_text", "AutoModelForCausalLM", CAUSAL | {"head_dim": 8}, _text),
    "ViTForImageClassification": ("vit", "AutoModelForImageClassification", IMAGE, _pixels),
    "ViTForMaskedImageModeling": ("vit", "AutoModelForMaskedImageModeling", IMAGE | {"encoder_stride": 4}, _pixels),
    "DeiTForImageClassification": ("deit", "AutoModelForImageClassification", IMAGE, _pixels),
    "Dinov2ForImageClassification": ("dinov2", "AutoModelForImageClassification", DINO, _pixels),
    "Dinov2Model": ("dinov2", "AutoModel", DINO | {"use_swiglu_ffn": True}, _pixels),
    "Dinov2WithRegistersForImageClassification": (
        "dinov2_with_registers",
        "AutoModelForImageClassification",
        DINO,
        _pixels,
    ),
    "SwinForImageClassification": ("swin", "AutoModelForImageClassification", SWIN, _pixels),
    "CLIPVisionModel": ("clip_vision_model", "AutoModel", IMAGE, _pixels),
    "ConvNextForImageClassification": ("convnext", "AutoModelForImageClassification", CONVNEXT, _large_pixels),
    "ResNetForImageClassification": ("resnet", "AutoModelForImageClassification", BOTTLENECK, _large_pixels),
    "ResNetModel": ("resnet", "AutoModel", RESNET, _large_pixels),
    "ResNetBackbone": ("resnet", "AutoBackbone", RESNET | {"out_features": ["stage1", "stage2"]}, _large_pixels),
    "WhisperForConditionalGeneration": ("whisper", "AutoModelForSpeechSeq2Seq", WHISPER, _speech),
    "WhisperForAudioClassification": ("whisper", "AutoModelForAudioClassification", WHISPER, _sound),
    "WhisperForCausalLM": ("whisper", "AutoModelForCausalLM", WHISPER | {"is_decoder": True}, _text),
    "T5ForConditionalGeneration": (
        "t5",
        "AutoModelForSeq2SeqLM",
        T5 | {"feed_forward_proj": "gated-gelu"},
        _sequences,
    ),
    "T5EncoderModel": ("t5", "AutoModelForTextEncoding", T5, _text),
    "T5ForTokenClassification": ("t5", "AutoModelForTokenClassification", T5, _text),
}

# One class for each family, where one says it all.
OF_FAMILY = {model_type: name for name, (model_type, *_) in reversed(CASES.items())}
every_case = pytest.mark.parametrize("name", CASES)
every_family = pytest.mark.parametrize("name", OF_FAMILY.values(), ids=OF_FAMILY)
# Every family too, for tests that take seconds; daily only for those whose kinds of layers and models differ most.
DAILY = ("convnext", "gpt2", "llama", "resnet", "whisper")
every_family_slowly = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=model_type, marks=[] if model_type in DAILY else pytest.mark.slow)
        for model_type, name in OF_FAMILY.items()
    ],
)


def one_block(name: str) -> dict[str, Any]:
    """
    Fields of a config that has one block in every stack, for tests of what happens within one, which take as long as
    there are layers; convolutional nets keep theirs, which differ.
    """
    kind, _, config, _ = CASES[name]
    if kind in ("convnext", "resnet"):
        return {}
    return {field: [1] * len(config[field]) if field == "depths" else 1 for field in FAMILIES[kind].counts}


def stock_model(name: str, **config: Any) -> Any:
    """A tiny stock model in eval mode, with no weight left at a special value."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**CASES[name][2] | config)).eval()
    randomize_(model)
    return model


def inputs(name: str) -> dict[str, Tensor]:
    """A small batch for a model."""
    return CASES[name][3]()


def randomize_(model: nn.Module, seed: int = 1, scale: float = 0.05) -> None:
    """Add noise to every parameter and running mean, and draw the targets of branches."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if isinstance(tensor, nn.Parameter) or name.endswith("running_mean"):
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor) * scale)
        for name, branch in model.named_modules():
            if isinstance(branch, SkipBranch):
                branch.target.random_(0, branch.neurons, generator=generator)
                branch.check_targets_(name)


def grown_shapes(plain: GrowablePreTrainedModel, more: int = 3) -> dict[str, dict[str, Any]]:
    """Config fields with which a model that has not grown is wider in every second group, and branches everywhere."""
    sites = list(plain.growable_linears())
    hidden = [site for site in sites if site.neurons is not None]
    widths = {site.root: site.module.neurons + more for site in hidden[::2]}
    sizes = {site.root: [2, 3] if index % 2 else [site.module.neurons + 1] for index, site in enumerate(sites)}
    return {"widths": widths, "skip_sizes": sizes}


def grown_model(name: str, seed: int = 1, more: int = 3, **config: Any) -> GrowablePreTrainedModel:
    """A growable model in which every second group of neurons is wider, and all layers have branches, some nested."""
    import hf_saddle

    plain = hf_saddle.growable(stock_model(name, **config))
    for field, value in grown_shapes(plain, more).items():
        setattr(plain.config, field, value)
    torch.manual_seed(seed)
    model = type(plain)(plain.config).eval()
    randomize_(model, seed)
    return model


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other), (one - other).abs().max()


def aligned(model: nn.Module) -> nn.Module:
    """
    The model with its parameters where torch puts tensors. In those of a file, at any address, products with a single
    column may add in another order on some processors, of stock models too.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def outputs(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """All floating point outputs, in order."""

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        return [tensor for item in value for tensor in tensors(item)] if isinstance(value, (tuple, list)) else []

    with torch.no_grad():
        found = model(**batch, return_dict=True, **options)
    return [tensor for item in found.values() for tensor in tensors(item)]
