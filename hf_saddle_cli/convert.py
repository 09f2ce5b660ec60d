"""`hf-saddle convert`: between stock and growable models, always verified before anything is written."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hf_saddle import models
from hf_saddle.growth import merge_pairs_
from hf_saddle.models import FAMILIES, GrowablePreTrainedModel, SaddleConfig

from .commands import Target
from .common import at, find_processor, load_config, load_model, quiet, random_inputs


# The fields of stock configs that say how many hidden neurons there are, by the start of the paths of their layers.
_WIDTHS = {
    "gpt2": {"": "n_inner"},
    "t5": {"": "d_ff"},
    "whisper": {"encoder.": "encoder_ffn_dim", "decoder.": "decoder_ffn_dim"},
}


def convert_model(source: str, output: Path, to: Target, revision: str | None) -> float:
    """
    Write the converted model into a folder.

    Returns:
        `float`: The largest difference between the outputs of both models for random inputs.

    Raises:
        ValueError: If the folder is not empty, or the model cannot be converted without computing something else.
    """
    quiet()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and is not an empty folder; nothing is overwritten.")
    torch.manual_seed(0)
    if to is Target.saddle:
        before, after = _to_saddle(source, revision)
    elif to is Target.merged:
        before, after = _merged(source, revision)
    else:
        before = load_model(source, revision)
        after = _to_stock(before)
    difference = _difference(before, after)
    if difference > 1e-4:
        raise ValueError(f"The converted model computes something else (by {difference:.2g}); nothing is written.")
    if to is Target.per_layer:
        _save_per_layer(before, after, output)
    else:
        after.save_pretrained(output)
    processor = find_processor(source, revision)
    if processor is not None:
        processor.save_pretrained(output)
    return difference


def _to_saddle(source: str, revision: str | None) -> tuple[PreTrainedModel, PreTrainedModel]:
    config = load_config(source, revision)
    name = (config.architectures or [""])[0]
    kind = getattr(models, f"Saddle{name}", None)
    if isinstance(config, SaddleConfig) or kind is None:
        raise ValueError(
            f"{source} is a {name or config.model_type}; only stock models of these types become growable: "
            f"{', '.join(FAMILIES)}."
        )
    stock = kind.load_stock(source, **at(revision))
    return stock, kind.from_stock(stock)


def _merged(source: str, revision: str | None) -> tuple[PreTrainedModel, PreTrainedModel]:
    before, after = load_model(source, revision), load_model(source, revision)
    merge_pairs_(after)
    return before, after


def _to_stock(model: GrowablePreTrainedModel) -> PreTrainedModel:
    """The stock model that computes the same; narrower layers are filled up with neurons that are fed by nothing."""
    config = model.config
    branches = [site.path for site in model.growable_linears() if site.module.skip is not None]
    if branches:
        raise ValueError(f"The model has grown in depth at {branches[0]}: no stock class computes that.")
    family = config.model_type.removeprefix("saddle_")
    if family in ("deit", "vit") and (
        config.head_dim * config.num_attention_heads != config.hidden_size or config.attention_scaling is not None
    ):
        raise ValueError("The model's attention has a `head_dim` or `attention_scaling` that no stock class has.")
    fields = config.stock().to_dict()
    sizes = _WIDTHS.get(family, {"": "intermediate_size"})
    if not set(sizes.values()) <= fields.keys():
        raise ValueError(f"The config of {model.stock_class.__name__} has no field for the widths of its neurons.")
    for start, field in sizes.items():
        fields[field] = max(width for root, width in model.shapes().widths.items() if root.startswith(start))
    kind = model.stock_class
    stock = kind(kind.config_class(**fields))
    state = stock.state_dict()
    for name, tensor in model.state_dict().items():
        target = torch.zeros_like(state[name])
        target[tuple(slice(size) for size in tensor.shape)] = tensor
        state[name] = target
    stock.load_state_dict(state)
    return stock.eval()


def _save_per_layer(model: GrowablePreTrainedModel, stock: PreTrainedModel, output: Path) -> None:
    """The growable model's own tensors, under the stock model's names and type, with plain per-layer widths."""
    if stock.config.model_type not in ("deit", "vit"):
        raise ValueError(f"Plain per-layer widths are a form of ViT and DeiT; a {type(model).__name__} has `widths`.")
    output.mkdir(parents=True, exist_ok=True)
    fields = stock.config.to_dict() | {"architectures": [type(stock).__name__]}
    default = model.config.to_dict()["intermediate_size"]
    fields |= {
        "intermediate_size": default,
        "per_layer_config": {
            str(layer): {"intermediate_size": width}
            for layer, width in enumerate(model.shapes().widths.values())
            if width != default
        },
    }
    (output / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    model.save_growth_history(output)


@torch.no_grad()
def _difference(before: PreTrainedModel, after: PreTrainedModel) -> float:
    """Largest difference between the first outputs of two models, one of them growable, for random inputs."""
    growable = before if isinstance(before, GrowablePreTrainedModel) else after
    inputs = random_inputs(growable, 2)
    first, second = (model.eval()(**inputs)[0] for model in (before, after))
    return float((first - second).abs().max())
