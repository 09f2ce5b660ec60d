"""The fields of small configs, from scratch, in each family's own words."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from .arguments import ModelAndDataArguments


# What transformers' pipeline writes unless told otherwise. A model from scratch takes that after a prompt as long as a
# sample of its training.
NEW_TOKENS = 256

Fields = Callable[[ModelAndDataArguments, PreTrainedTokenizerBase | None], dict[str, Any]]


def _layers(arguments: ModelAndDataArguments) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    return {name: getattr(arguments, name) for name in names}


def _vit(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    names = ("image_size", "patch_size", "intermediate_size")
    return _layers(arguments) | {name: getattr(arguments, name) for name in names}


def _dinov2(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    fields = _vit(arguments, tokenizer)
    return fields | {"mlp_ratio": max(1, fields.pop("intermediate_size") // arguments.hidden_size)}


def _stages(arguments: ModelAndDataArguments) -> dict[str, Any]:
    """Two stages, the second twice as wide and half as fine."""
    sizes = [arguments.hidden_size, 2 * arguments.hidden_size]
    second = arguments.num_hidden_layers // 2
    return {"hidden_sizes": sizes, "depths": [arguments.num_hidden_layers - second, max(1, second)]}


def _swin(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    return {
        "image_size": arguments.image_size,
        "patch_size": arguments.patch_size,
        "embed_dim": arguments.hidden_size,
        "depths": _stages(arguments)["depths"],
        "num_heads": [arguments.num_attention_heads, 2 * arguments.num_attention_heads],
        "window_size": max(1, arguments.image_size // arguments.patch_size // 2),
        "mlp_ratio": arguments.intermediate_size / arguments.hidden_size,
        "drop_path_rate": 0.0,
    }


def _resnet(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    return _stages(arguments) | {"embedding_size": arguments.hidden_size, "layer_type": "basic"}


def _convnext(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    # The stock start of 1e-6 is for nets of many layers and long trainings.
    more = {"num_stages": 2, "patch_size": arguments.patch_size, "layer_scale_init_value": 0.1}
    return _stages(arguments) | more | {"image_size": arguments.image_size}


def _tokens(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    assert tokenizer is not None
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names}


def _bert(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    # RoBERTa counts positions from behind the padding token on.
    positions = arguments.block_size + 8
    fields = _layers(arguments) | _tokens(arguments, tokenizer) | {"max_position_embeddings": positions}
    return fields | {"intermediate_size": arguments.intermediate_size}


def _distilbert(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    fields = _bert(arguments, tokenizer)
    return fields | {"hidden_dim": fields.pop("intermediate_size")}


def _decoder(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    return _bert(arguments, tokenizer) | {"max_position_embeddings": arguments.block_size + NEW_TOKENS}


def _gpt2(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    fields = _decoder(arguments, tokenizer)
    return fields | {"n_inner": fields.pop("intermediate_size")}


def _llama(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    head = arguments.hidden_size // arguments.num_attention_heads
    more = {"num_key_value_heads": arguments.num_attention_heads, "head_dim": head, "tie_word_embeddings": True}
    return _decoder(arguments, tokenizer) | more


def _gemma(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    fields = _llama(arguments, tokenizer)
    return fields | {"query_pre_attn_scalar": fields["head_dim"]}


VISION: dict[str, Fields] = {
    "deit": _vit,
    "vit": _vit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "swin": _swin,
    "resnet": _resnet,
    "convnext": _convnext,
}
# Without Qwen2: transformers reads every tokenizer beside a stock one as that of Qwen2, so that a new one would be
# another one once the model has been converted.
DECODERS: dict[str, Fields] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "qwen3": _llama,
    "olmo2": _llama,
    "mistral": _llama,
    "gemma3_text": _gemma,
}
TEXT: dict[str, Fields] = {"bert": _bert, "distilbert": _distilbert, "roberta": _bert, **DECODERS}
