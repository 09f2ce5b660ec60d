"""Where the neurons of each architecture are: all that a family needs to grow."""

from typing import Any

import transformers
from torch import nn

from .descriptions import Block, Family, Inside, Neurons
from .head_kinds import (
    BERT,
    BERT_ACROSS,
    CLIP,
    CLIP_ACROSS,
    DISTILBERT,
    GPT2,
    GPT2_ACROSS,
    GROUPED,
    SWIN,
    T5,
    T5_ACROSS,
    VISION,
)


_PROJECTIONS = "q_proj k_proj v_proj o_proj"


def _names(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names.split())


def _mlp(
    linears: tuple[str, ...], rows: str, reader: str, activation: str, outputs: tuple[str, ...] | None = None
) -> tuple[Inside]:
    """
    A block of attention and an MLP of two layers; `rows` names one layer, or gate and up. Its outputs are by default
    the last layers of each attention, which come fourth, and of the MLP.
    """
    first = tuple(rows.split())
    outputs = (*linears[3::4], reader) if outputs is None else outputs
    return (((*linears, *first, reader), (Neurons(first, (reader,), activation),), outputs),)


def _llama(config: Any, outputs: tuple[str, ...] | None = None) -> tuple[Inside, ...]:
    return _mlp(_names("self_attn", _PROJECTIONS), "mlp.gate_proj mlp.up_proj", "mlp.down_proj", "mlp.act_fn", outputs)


def _normed(config: Any) -> tuple[Inside, ...]:
    # Of linears that answer nothing these norms would make full answers again after the first step.
    return _llama(config, ("post_attention_layernorm", "post_feedforward_layernorm"))


def _vit(config: Any, outputs: tuple[str, ...] | None = None) -> tuple[Inside, ...]:
    return _mlp(_names("attention", _PROJECTIONS), "mlp.fc1", "mlp.fc2", "mlp.activation_fn", outputs)


def _dinov2(config: Any) -> tuple[Inside, ...]:
    scales = ("layer_scale1", "layer_scale2")
    if not config.use_swiglu_ffn:
        return _vit(config, scales)
    return _mlp(_names("attention", _PROJECTIONS), "mlp.gate_proj mlp.up_proj", "mlp.down_proj", "mlp.act_fn", scales)


def _clip(config: Any) -> tuple[Inside, ...]:
    return _mlp(_names("self_attn", "q_proj k_proj v_proj out_proj"), "mlp.fc1", "mlp.fc2", "mlp.activation_fn")


def _convnext(config: Any) -> tuple[Inside, ...]:
    output = "layer_scale_parameter" if config.layer_scale_init_value > 0 else "pwconv2"
    return _mlp(("dwconv",), "pwconv1", "pwconv2", "act", (output,))


def _resnet(config: Any) -> tuple[Inside, ...]:
    names = [f"layer.{index}" for index in range(3 if config.layer_type == "bottleneck" else 2)]
    neurons = tuple(
        Neurons((f"{one}.convolution",), (f"{two}.convolution",), f"{one}.activation", (f"{one}.normalization",))
        for one, two in zip(names, names[1:], strict=False)
    )
    return ((tuple(f"{name}.convolution" for name in names), neurons, (f"{names[-1]}.normalization",)),)


def _rectified(config: Any) -> str | None:
    if config.hidden_act == "relu":
        return None
    return f"the activation {config.hidden_act!r} behind its sum is no ReLU, which would change nothing"


def _bert(config: Any) -> tuple[Inside, ...]:
    crossing = ("attention", "crossattention") if config.add_cross_attention else ("attention",)
    attention = tuple(
        name for part in crossing for name in _names(part, "self.query self.key self.value output.dense")
    )
    return _mlp(attention, "intermediate.dense", "output.dense", "intermediate.intermediate_act_fn")


def _post_norm(config: Any) -> str | None:
    return "it normalises the sum of its input and what it adds (post-norm)"


def _distilbert(config: Any) -> tuple[Inside, ...]:
    return _mlp(_names("attention", "q_lin k_lin v_lin out_lin"), "ffn.lin1", "ffn.lin2", "ffn.activation")


def _gpt2(config: Any) -> tuple[Inside, ...]:
    attention, outputs = _names("attn", "c_attn c_proj"), (*_names("attn", "c_proj"), "mlp.c_proj")
    if config.add_cross_attention:
        attention += _names("crossattention", "q_attn c_attn c_proj")
        outputs += ("crossattention.c_proj",)
    return _mlp(attention, "mlp.c_fc", "mlp.c_proj", "mlp.act", outputs)


def _whisper(config: Any) -> tuple[Inside, ...]:
    projections = "q_proj k_proj v_proj out_proj"
    itself, across = _names("self_attn", projections), _names("encoder_attn", projections)
    encoder = _mlp(itself, "fc1", "fc2", "activation_fn")
    return encoder + _mlp(itself + across, "fc1", "fc2", "activation_fn")


def _t5(config: Any) -> tuple[Inside, ...]:
    itself, across = _names("layer.0.SelfAttention", "q k v o"), _names("layer.1.EncDecAttention", "q k v o")
    rows = "{0}.wi_0 {0}.wi_1" if config.feed_forward_proj.startswith("gated") else "{0}.wi"
    insides: tuple[Inside, ...] = ()
    for attention, index in ((itself, 1), (itself + across, 2)):
        dense = f"layer.{index}.DenseReluDense"
        insides += _mlp(attention, rows.format(dense), f"{dense}.wo", f"{dense}.act")
    return insides


_LAYERS = ("layers.*",)
_STAGES = ("depths",)

FAMILIES: dict[str, Family] = {
    "bert": Family(("encoder.layer.*",), _bert, audible=_post_norm, heads=(BERT, BERT_ACROSS)),
    "clip_vision_model": Family(("encoder.layers.*",), _clip, heads=(CLIP,)),
    "convnext": Family(("encoder.stages.*.layers.*",), _convnext, widths=(), counts=_STAGES),
    "deit": Family(_LAYERS, _vit, heads=(VISION,)),
    "dinov2": Family(("encoder.layer.*",), _dinov2, widths=("mlp_ratio",), heads=(VISION,)),
    "dinov2_with_registers": Family(("encoder.layer.*",), _dinov2, widths=("mlp_ratio",), heads=(VISION,)),
    "distilbert": Family(
        ("transformer.layer.*",),
        _distilbert,
        activation="activation",
        widths=("hidden_dim",),
        counts=("n_layers",),
        audible=_post_norm,
        heads=(DISTILBERT,),
    ),
    "gemma3_text": Family(_LAYERS, _normed, activation="hidden_activation", silence=-1.0, heads=(GROUPED,)),
    "gpt2": Family(
        ("h.*",),
        _gpt2,
        activation="activation_function",
        widths=("n_inner",),
        counts=("n_layer",),
        heads=(GPT2, GPT2_ACROSS),
    ),
    "llama": Family(_LAYERS, _llama, heads=(GROUPED,)),
    "mistral": Family(_LAYERS, _llama, heads=(GROUPED,)),
    "olmo2": Family(_LAYERS, _normed, heads="norms over all heads together are part of queries and keys"),
    "qwen2": Family(_LAYERS, _llama, heads=(GROUPED,)),
    "qwen3": Family(_LAYERS, _llama, heads=(GROUPED,)),
    "resnet": Family(("encoder.stages.*.layers.*",), _resnet, widths=(), counts=_STAGES, audible=_rectified),
    "roberta": Family(("encoder.layer.*",), _bert, audible=_post_norm, heads=(BERT, BERT_ACROSS)),
    "swin": Family(("encoder.layers.*.blocks.*",), _vit, widths=("mlp_ratio",), counts=_STAGES, heads=(SWIN,)),
    "t5": Family(
        ("encoder.block.*", "decoder.block.*"),
        _t5,
        activation="dense_act_fn",
        widths=("d_ff", "d_ff"),
        counts=("num_layers", "num_decoder_layers"),
        heads=(T5, T5_ACROSS),
    ),
    "vit": Family(_LAYERS, _vit, heads=(VISION,)),
    "whisper": Family(
        ("encoder.layers.*", "decoder.layers.*"),
        _whisper,
        activation="activation_function",
        widths=("encoder_ffn_dim", "decoder_ffn_dim"),
        counts=("encoder_layers", "decoder_layers"),
        heads=(CLIP, CLIP_ACROSS),
    ),
}

_KNOWN = (
    f"Known are {', '.join(FAMILIES)}; another one takes an entry of `FAMILIES` in hf_saddle/models/families.py, "
    "see CONTRIBUTING.md."
)


def family_of(model_type: str) -> Family:
    """
    The description of an architecture, by the model type of its stock or growable config.

    Raises:
        ValueError: If it is not known.
    """
    family = FAMILIES.get(model_type.removeprefix("saddle_"))
    if family is None:
        raise ValueError(
            f"There is no description of the model type {model_type!r}, so that it is not known where its neurons "
            f"are. {_KNOWN}"
        )
    return family


def unknown_class(name: str) -> str:
    """What an error about a class that is asked for by name says of those that there are; nothing of other names."""
    if not name.startswith("Saddle"):
        return ""
    return f". Growable classes have the names of those of transformers behind `Saddle`, of certain types. {_KNOWN}"


def blocks_in(base: nn.Module, config: Any) -> list[tuple[str, Block]]:
    """
    Every block of a base model, in the order of the forward pass, with its path.

    Raises:
        ValueError: If the model type is not known, or if the model does not have a module that the description names.
    """
    blocks: list[tuple[str, Block]] = []
    for block in family_of(config.model_type).blocks(config):
        found = {"": base}
        for part in block.path.split("."):
            found = {
                f"{path}.{name}".lstrip("."): child
                for path, module in found.items()
                for name, child in module.named_children()
                if part in ("*", name)
            }
        blocks += [(path, block) for path in found]
    missing = [] if blocks else ["any block"]
    for path, block in blocks:
        known = {name for name, _ in base.get_submodule(path).named_modules(remove_duplicate=False)}
        named = [*block.linears]
        for neurons in block.neurons:
            named += [*neurons.rows, *neurons.readers, *neurons.norms, neurons.activation]
        missing += [f"{path}.{name}" for name in dict.fromkeys(named) if name not in known]
    if missing:
        raise ValueError(mismatch(base, f"has not {', '.join(missing[:5])}"))
    return blocks


def mismatch(base: nn.Module, what: str) -> str:
    """The message that a base model is not what the description of its type says."""
    return (
        f"A {type(base).__name__} of transformers {transformers.__version__} {what}, against the description of its "
        "family in `FAMILIES` of hf_saddle/models/families.py. Adapters and quantisers have to come after the "
        "conversion; if transformers has changed its modules, the description has to follow."
    )
