"""Tiny float64 models of the families that can grow, and what a neuron's displacement does to them, by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import transformers
from torch import Tensor, nn

from hf_saddle.models.descriptions import Block, Neurons
from hf_saddle.models.families import family_of
from hf_saddle.models.layouts import layout_of


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
TEXT = {"vocab_size": 41, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32}
LLAMA = SIZES | TEXT | {"num_key_value_heads": 1}
IMAGE = {"image_size": 16, "patch_size": 4, "num_labels": 3}
RESNET = {"embedding_size": 4, "depths": [1, 2], "num_labels": 3}
# Class, config fields and kind of batch.
FAMILY_CASES = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, **TEXT}, "tokens"),
    "llama": ("LlamaForCausalLM", LLAMA, "tokens"),
    "mistral": ("MistralForCausalLM", LLAMA, "tokens"),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | {"head_dim": 8}, "tokens"),
    "gemma3": ("Gemma3ForCausalLM", LLAMA | {"head_dim": 8}, "tokens"),
    "bert": ("BertForMaskedLM", SIZES | TEXT, "tokens"),
    "roberta": ("RobertaForSequenceClassification", SIZES | TEXT | {"num_labels": 3}, "texts"),
    "vit": ("ViTForImageClassification", SIZES | IMAGE, "images"),
    "deit": ("DeiTForImageClassification", SIZES | IMAGE, "images"),
    "swin": (
        "SwinForImageClassification",
        {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 2, **IMAGE, "patch_size": 2},
        "images",
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [4, 6], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0, "num_labels": 3},
        "large images",
    ),
    "resnet": (
        "ResNetForImageClassification",
        RESNET | {"hidden_sizes": [6, 8], "layer_type": "basic"},
        "large images",
    ),
    "resnet bottleneck": (
        "ResNetForImageClassification",
        RESNET | {"hidden_sizes": [16, 24], "layer_type": "bottleneck"},
        "large images",
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {
            **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
            **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
            **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 20),
            **{"d_model": 16, "num_mel_bins": 4, "max_source_positions": 10, "max_target_positions": 32},
            **{"vocab_size": 41, "decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        },
        "sounds",
    ),
    "t5 gated": (
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
        | {"vocab_size": 41, "decoder_start_token_id": 0},
        "translations",
    ),
    "dinov2 swiglu": (
        "Dinov2ForImageClassification",
        {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        | IMAGE
        | {"use_swiglu_ffn": True, "mlp_ratio": 2},
        "images",
    ),
    "clip": ("CLIPVisionModel", SIZES | {"image_size": 16, "patch_size": 4}, "images"),
}
GATED = ["llama", "mistral", "qwen3", "gemma3", "t5 gated", "dinov2 swiglu"]


@dataclass
class FamilyCase:
    """A model and a probe batch."""

    model: nn.Module
    batch: dict[str, Tensor]

    def loss(self) -> Tensor:
        """The mean loss."""
        return family_loss(self.model, self.batch)

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Path and description of the first and the last block of every kind."""
        base = next(name for name, module in self.model.named_modules() if module is self.model.base_model)
        names = [name for name, _ in self.model.named_modules()]
        for block in family_of(self.model.config.model_type).blocks(self.model.config):
            pattern = f"{base}.{block.path}".lstrip(".").replace("*", "[0-9]")
            paths = [name for name in names if fnmatchcase(name, pattern)]
            yield from ((path, block) for path in sorted({paths[0], paths[-1]}))

    def neurons(self) -> Iterator[Neurons]:
        """Hidden neurons of these blocks, by paths in the model."""
        for path, block in self.blocks():
            for found in block.neurons:
                names = ([f"{path}.{name}" for name in part] for part in (found.rows, found.readers, found.norms))
                rows, readers, norms = map(tuple, names)
                yield Neurons(rows, readers, f"{path}.{found.activation}", norms)

    def linears(self) -> list[str]:
        """Layers of these blocks."""
        return [f"{path}.{name}" for path, block in self.blocks() for name in block.linears]


def family_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss of a batch in float64: transformers' own casts logits to float32."""
    out = model(**{name: value for name, value in batch.items() if name != "y"})
    if "logits" not in out:
        return out.last_hidden_state.square().mean() + out.last_hidden_state[:, 1:].sin().mean()
    return nn.functional.cross_entropy(out.logits.flatten(0, -2), batch["y"].flatten())


def family_batch(kind: str, samples: int = 5) -> dict[str, Tensor]:
    """A batch of a kind, with labels `y`."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> Tensor:
        return torch.randint(3, 41, (samples, count), generator=generator)

    def noise(*shape: int) -> Tensor:
        return torch.randn(samples, *shape, generator=generator, dtype=torch.float64)

    classes = torch.arange(samples) % 3
    if kind == "tokens":
        return {"input_ids": ids(7), "y": ids(7)}
    if kind == "texts":
        return {"input_ids": ids(7), "y": classes}
    if kind == "sounds":
        return {"input_features": noise(4, 20), "decoder_input_ids": ids(6), "y": ids(6)}
    if kind == "translations":
        return {"input_ids": ids(7), "decoder_input_ids": ids(5), "y": ids(5)}
    size = 32 if kind == "large images" else 16
    return {"pixel_values": noise(3, size, size), "y": classes}


def family_case(name: str, samples: int = 5) -> FamilyCase:
    """A tiny model with weights that make curvatures large; ResNets have SiLU, as ReLU has no curvature."""
    kind, fields, batch = FAMILY_CASES[name]
    torch.manual_seed(0)
    architecture = getattr(transformers, kind)
    model = architecture(architecture.config_class(**fields)).double().eval()
    model.set_attn_implementation("eager")  # the others are not differentiated twice
    generator = torch.Generator().manual_seed(1)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise(parameter) * 0.1)
        for module in list(model.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.add_(noise(module.running_mean) * 0.2)
                module.running_var.mul_(1 + noise(module.running_var).square())
            for child, inner in module.named_children():
                if isinstance(inner, nn.ReLU):
                    setattr(module, child, nn.SiLU())
    return FamilyCase(model, family_batch(batch, samples))


def respond(module: nn.Module, inputs: Tensor, row: Tensor, neuron: int) -> Tensor:
    """`p · x̂` of a neuron at every position, by what the layer itself would do with the row: a channel of outputs."""
    weight, bias = row[:-1], row[-1:]
    if not isinstance(module, nn.Conv2d):
        return inputs @ weight + bias
    width = module.in_channels // module.groups
    group = neuron // (module.out_channels // module.groups)
    own = inputs[:, group * width : (group + 1) * width]
    kernel = weight.view(1, width, *module.kernel_size)
    return nn.functional.conv2d(own, kernel, bias, module.stride, module.padding, module.dilation)[:, 0]


def unit_vector(value: Tensor, axis: int, neuron: int) -> Tensor:
    """The unit vector of a channel, to be multiplied by values of one channel fewer."""
    shape = [1] * value.dim()
    shape[axis] = value.shape[axis]
    return nn.functional.one_hot(torch.tensor(neuron), value.shape[axis]).to(value.dtype).view(shape)


@contextmanager
def deepened(case: FamilyCase, linear: str, neuron: int, row: Tensor) -> Iterator[None]:
    """A quadratic unit `½ (p · x̂)²` added to a neuron."""
    module = case.model.get_submodule(linear)
    axis = layout_of(module).channel

    def hook(module, args, output):
        unit = 0.5 * respond(module, args[0], row, neuron).square()
        return output + unit.unsqueeze(axis) * unit_vector(output, axis, neuron)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def halved(case: FamilyCase, neurons: Neurons, neuron: int, displacement: Tensor) -> Iterator[None]:
    """A neuron that is the mean of its copies at `θ ± δ`, `δ` of all its rows."""
    modules = [case.model.get_submodule(path) for path in neurons.rows]
    parts = displacement.view(len(modules), -1)
    axis, seen, handles = layout_of(modules[0]).channel, {}, []

    def keep(module, args, output):
        seen[module] = (output.select(axis, neuron), args[0])

    activation = case.model.get_submodule(neurons.activation)

    def answer(sign):
        moved = [
            seen[module][0] + sign * respond(module, seen[module][1], part, neuron)
            for module, part in zip(modules, parts, strict=True)
        ]
        for norm in map(case.model.get_submodule, neurons.norms):
            slope = norm.weight[neuron] / (norm.running_var[neuron] + norm.eps).sqrt()
            moved[0] = (moved[0] - norm.running_mean[neuron]) * slope + norm.bias[neuron]
        return activation.forward(moved[0]) * (moved[1] if len(moved) == 2 else 1)

    def read(module, args):
        extra = 0.5 * (answer(1) + answer(-1)) - answer(0)
        return (args[0] + extra.unsqueeze(axis) * unit_vector(args[0], axis, neuron), *args[1:])

    handles += [module.register_forward_hook(keep) for module in modules]
    handles += [case.model.get_submodule(path).register_forward_pre_hook(read) for path in neurons.readers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
