"""`hf-saddle convert`: between stock and growable models, always verified before anything is written."""

import copy
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hf_saddle.growth import merge_pairs_, to_stock
from hf_saddle.models import FAMILIES, GrowablePreTrainedModel, SaddleConfig

from .commands import Target
from .common import (
    architecture,
    at,
    find_processor,
    growable_class,
    load_config,
    load_model,
    quiet,
    random_inputs,
)


class Converted(NamedTuple):
    """
    What a conversion came to.

    Attributes:
        difference (`float`): The largest difference between the outputs of both models for random inputs.
        padding (`int`): Parameters of the stock model that are zeros in neurons which the growable one has not.
    """

    difference: float
    padding: int


def convert_model(source: str, output: Path, to: Target, revision: str | None) -> Converted:
    """
    Write the converted model, with its tokenizer or processor, into a folder.

    Raises:
        ValueError: If the folder is not empty, the model cannot be converted without computing something else, or its
            tokenizer or processor cannot be loaded.
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
        after = to_stock(before)
    difference = _difference(before, after)
    if not difference <= 1e-4:
        raise ValueError(f"The converted model computes something else (by {difference:.2g}); nothing is written.")
    processor = find_processor(source, revision)
    if to is Target.per_layer:
        _save_per_layer(before, after, output)
    else:
        after.save_pretrained(output)
    if processor is not None:
        processor.save_pretrained(output)
    parameters = [sum(parameter.numel() for parameter in model.parameters()) for model in (before, after)]
    return Converted(difference, parameters[1] - parameters[0] if to is Target.stock else 0)


def _to_saddle(source: str, revision: str | None) -> tuple[PreTrainedModel, PreTrainedModel]:
    config = load_config(source, revision)
    name = architecture(config, source)
    kind = growable_class(f"Saddle{name}")
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
    """Largest difference between the outputs of two models, one of them growable, for random inputs."""
    growable = before if isinstance(before, GrowablePreTrainedModel) else after
    inputs = random_inputs(growable, 2)
    first, second = (_outputs(model, inputs) for model in (before, after))
    if len(first) != len(second):
        raise ValueError(f"One of the models has {len(first)} outputs, the other {len(second)}; nothing is written.")
    # Of which `max` of Python would pass over one that is no number.
    return float(torch.stack([(one - other).abs().max() for one, other in zip(first, second, strict=True)]).max())


def _outputs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """All floating point outputs; those of a model in half precision in single, where rounding hides nothing."""
    exact = model if model.dtype in (torch.float32, torch.float64) else copy.deepcopy(model).float()
    found, waiting = [], list(exact.eval()(**inputs, return_dict=True).values())
    for value in waiting:
        if isinstance(value, (tuple, list)):
            waiting.extend(value)
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            found.append(value)
    return found
