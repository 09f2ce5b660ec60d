"""What is known of a transformers model by its type: the layers that can grow, and which of them are gates."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from ...models.families import FAMILIES, blocks_in


@dataclass(frozen=True)
class Gate:
    """Gated neurons `h = φ(gate(x)) · up(x)` by paths in the model: the rows of two layers, and what reads `h`."""

    gate: str
    up: str
    readers: tuple[str, ...]
    activation: nn.Module


@dataclass(frozen=True)
class Described:
    """
    What is known of a model.

    Attributes:
        linears (`tuple[str, ...]`): Paths of the layers that can grow.
        gates (`tuple[Gate, ...]`): Its gated neurons.
        decoder (`nn.Module`, *optional*): What works on the second kind of positions of an encoder-decoder model.
    """

    linears: tuple[str, ...]
    gates: tuple[Gate, ...]
    decoder: nn.Module | None


def describe(model: nn.Module) -> Described | None:
    """
    What the description of a model's type says of a model; `None` where there is none.

    Raises:
        ValueError: If it names a module that the model does not have.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    if model.config.model_type.removeprefix("saddle_") not in FAMILIES:
        return None
    linears: list[str] = []
    gates: list[Gate] = []
    base = next(path for path, module in model.named_modules() if module is model.base_model)
    for place, block in blocks_in(model.base_model, model.config):
        path = f"{base}.{place}".lstrip(".")
        linears += [f"{path}.{name}" for name in block.linears]
        for neurons in (each.at(path) for each in block.neurons if len(each.rows) == 2):
            gate, up = neurons.rows
            gates.append(Gate(gate, up, neurons.readers, model.get_submodule(neurons.activation)))
    decoder = model.get_decoder() if model.config.is_encoder_decoder else None
    return Described(tuple(linears), tuple(gates), decoder)
