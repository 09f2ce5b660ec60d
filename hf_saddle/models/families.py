"""Where the neurons of each architecture are: all that a family needs to grow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Neurons:
    """
    Hidden neurons of a block, whose outputs reach the network through linear readers only. Names are relative to it.

    Attributes:
        rows (`tuple[str, ...]`): The layer that they are the rows of, or gate and up of `h = act(gate) * up`.
        readers (`tuple[str, ...]`): The layers that have a column, or input channel, for each of them.
        activation (`str`): Their activation.
        norms (`tuple[str, ...]`): Batch normalisations between rows and activation.
    """

    rows: tuple[str, ...]
    readers: tuple[str, ...]
    activation: str
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """
    A kind of block.

    Attributes:
        path (`str`): Path in the base model; `*` stands for any index.
        linears (`tuple[str, ...]`): Layers that skip branches may feed, in the order of the forward pass.
        neurons (`tuple[Neurons, ...]`): Neurons that may be split.
    """

    path: str
    linears: tuple[str, ...]
    neurons: tuple[Neurons, ...] = ()


@dataclass(frozen=True)
class Family:
    """
    What the models of a type have in common. A block that a model class does not have, as an encoder alone has no
    decoder, is left out; within a block every name must be that of a module.

    Attributes:
        blocks (`Callable`): Maps a config of the type to its kinds of blocks, in the order of the forward pass.
        activation (`str`): The field of the config that names the activation of the neurons.
    """

    blocks: Callable[[Any], tuple[Block, ...]]
    activation: str = "hidden_act"


def _names(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names.split())


def _mlp(linears: tuple[str, ...], rows: str, reader: str, activation: str, path: str) -> tuple[Block, ...]:
    """Blocks of attention and an MLP of two layers; `rows` names one layer, or gate and up."""
    first = tuple(rows.split())
    return (Block(path, (*linears, *first, reader), (Neurons(first, (reader,), activation),)),)


def _llama(config: Any) -> tuple[Block, ...]:
    attention = _names("self_attn", "q_proj k_proj v_proj o_proj")
    return _mlp(attention, "mlp.gate_proj mlp.up_proj", "mlp.down_proj", "mlp.act_fn", "layers.*")


def _vit(path: str) -> Callable[[Any], tuple[Block, ...]]:
    attention = _names("attention", "q_proj k_proj v_proj o_proj")
    return lambda config: _mlp(attention, "mlp.fc1", "mlp.fc2", "mlp.activation_fn", path)


def _dinov2(config: Any) -> tuple[Block, ...]:
    attention = _names("attention", "q_proj k_proj v_proj o_proj")
    if not config.use_swiglu_ffn:
        return _mlp(attention, "mlp.fc1", "mlp.fc2", "mlp.activation_fn", "encoder.layer.*")
    return _mlp(attention, "mlp.gate_proj mlp.up_proj", "mlp.down_proj", "mlp.act_fn", "encoder.layer.*")


def _clip(config: Any) -> tuple[Block, ...]:
    attention = _names("self_attn", "q_proj k_proj v_proj out_proj")
    return _mlp(attention, "mlp.fc1", "mlp.fc2", "mlp.activation_fn", "encoder.layers.*")


def _convnext(config: Any) -> tuple[Block, ...]:
    return _mlp(("dwconv",), "pwconv1", "pwconv2", "act", "encoder.stages.*.layers.*")


def _resnet(config: Any) -> tuple[Block, ...]:
    convolutions = 3 if config.layer_type == "bottleneck" else 2
    names = [f"layer.{index}" for index in range(convolutions)]
    neurons = tuple(
        Neurons((f"{one}.convolution",), (f"{two}.convolution",), f"{one}.activation", (f"{one}.normalization",))
        for one, two in zip(names, names[1:], strict=False)
    )
    return (Block("encoder.stages.*.layers.*", tuple(f"{name}.convolution" for name in names), neurons),)


def _bert(config: Any) -> tuple[Block, ...]:
    crossing = ("attention", "crossattention") if config.add_cross_attention else ("attention",)
    attention = tuple(
        name for part in crossing for name in _names(part, "self.query self.key self.value output.dense")
    )
    activation = "intermediate.intermediate_act_fn"
    return _mlp(attention, "intermediate.dense", "output.dense", activation, "encoder.layer.*")


def _gpt2(config: Any) -> tuple[Block, ...]:
    attention = _names("attn", "c_attn c_proj")
    if config.add_cross_attention:
        attention += _names("crossattention", "q_attn c_attn c_proj")
    return _mlp(attention, "mlp.c_fc", "mlp.c_proj", "mlp.act", "h.*")


def _whisper(config: Any) -> tuple[Block, ...]:
    projections = "q_proj k_proj v_proj out_proj"
    itself, across = _names("self_attn", projections), _names("encoder_attn", projections)
    encoder = _mlp(itself, "fc1", "fc2", "activation_fn", "encoder.layers.*")
    return encoder + _mlp(itself + across, "fc1", "fc2", "activation_fn", "decoder.layers.*")


def _t5(config: Any) -> tuple[Block, ...]:
    itself, across = _names("layer.0.SelfAttention", "q k v o"), _names("layer.1.EncDecAttention", "q k v o")
    rows = "{0}.wi_0 {0}.wi_1" if config.is_gated_act else "{0}.wi"
    blocks: tuple[Block, ...] = ()
    for side, attention, index in (("encoder", itself, 1), ("decoder", itself + across, 2)):
        dense = f"layer.{index}.DenseReluDense"
        blocks += _mlp(attention, rows.format(dense), f"{dense}.wo", f"{dense}.act", f"{side}.block.*")
    return blocks


FAMILIES: dict[str, Family] = {
    "bert": Family(_bert),
    "clip_vision_model": Family(_clip),
    "convnext": Family(_convnext),
    "deit": Family(_vit("layers.*")),
    "dinov2": Family(_dinov2),
    "dinov2_with_registers": Family(_dinov2),
    "gemma3_text": Family(_llama, activation="hidden_activation"),
    "gpt2": Family(_gpt2, activation="activation_function"),
    "llama": Family(_llama),
    "mistral": Family(_llama),
    "qwen3": Family(_llama),
    "resnet": Family(_resnet),
    "roberta": Family(_bert),
    "swin": Family(_vit("encoder.layers.*.blocks.*")),
    "t5": Family(_t5, activation="dense_act_fn"),
    "vit": Family(_vit("layers.*")),
    "whisper": Family(_whisper, activation="activation_function"),
}


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
            f"are. Known are {', '.join(FAMILIES)}; another one takes an entry of `FAMILIES` in "
            "hf_saddle/models/families.py, see CONTRIBUTING.md."
        )
    return family


__all__ = ["FAMILIES", "Block", "Family", "Neurons", "family_of"]
