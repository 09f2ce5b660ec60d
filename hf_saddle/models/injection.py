"""The layers of a model that a stock constructor has built become growable, in the sizes of a config."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .families import blocks_in, mismatch
from .growable import Growable, GrowableConv1D, GrowableConv2d, GrowableLinear, SkipBranch
from .heads import attentions_in, check_stacks, heads_of, resize_table_
from .layouts import layout_of
from .vision import finish_vision_


_KINDS: dict[type[nn.Module], type[Growable]] = {
    nn.Linear: GrowableLinear,
    Conv1D: GrowableConv1D,
    nn.Conv2d: GrowableConv2d,
}


def check_growable(module: nn.Module) -> None:
    """Raise a `ValueError` if a module is neither a growable layer nor one that [`make_growable_`] takes."""
    if not isinstance(module, Growable) and type(module) not in _KINDS:
        raise ValueError(f"a {type(module).__name__} is no plain nn.Linear, Conv1D or nn.Conv2d, and cannot grow")


def make_growable_(module: nn.Module) -> Growable:
    """
    Make a plain affine layer growable, in place: its parameters, hooks, device and flags stay.

    Raises:
        ValueError: If it is none, or of a class of its own.
    """
    check_growable(module)
    layer: Any = module
    if not isinstance(module, Growable):
        layer.__class__ = _KINDS[type(module)]
        layer.skip = None
    return layer  # type: ignore[no-any-return]


def _check_forward(path: str, module: nn.Module) -> None:
    """Raise a `ValueError` if a layer that is to become growable would go on computing as a plain one."""
    if not isinstance(module, Growable) and "forward" in vars(module):
        raise ValueError(
            f"The forward pass of {path} has been replaced, as `device_map` and offloading do, so that what grows "
            "there would not be computed. Make the model growable first, save it, and load that with the `device_map`."
        )


def inject_(base: Any, config: Any) -> bool:
    """
    Make the layers of a base model that its family describes growable, in the widths and with the branches of a
    growable config.

    Returns:
        `bool`: Whether weights are to be initialised, since layers got other shapes than those that stock has
            initialised; not again where they had become growable before.

    Raises:
        ValueError: If a module of the description is not there, or is of another kind, or if the config names layers
            that the model does not have.
    """
    widths, branches, heads = dict(config.widths or {}), dict(config.skip_sizes or {}), dict(config.heads or {})
    blocks = blocks_in(base, config)
    found: dict[str, nn.Module] = {}
    for path, block in blocks:
        for name in block.linears:
            root = f"{path}.{name}"
            found[root] = base.get_submodule(root)
            _check_forward(root, found[root])
            try:
                check_growable(found[root])
            except ValueError as error:
                raise ValueError(mismatch(base, f"has another {root} ({error})")) from error
    attentions = {attention.root: attention for attention in attentions_in(base)}
    unknown = sorted({*widths, *branches} - found.keys()) + sorted(heads.keys() - attentions.keys())
    if unknown:
        raise ValueError(f"The config names {', '.join(unknown[:5])}, which a {type(base).__name__} does not have.")
    again = all(isinstance(module, Growable) for module in found.values())
    layers = {root: make_growable_(module) for root, module in found.items()}
    for path, block in blocks:
        for neurons in block.neurons:
            width = widths.get(f"{path}.{neurons.rows[0]}")
            for name in (*neurons.rows, *neurons.norms) if width is not None else ():
                _resize_(base.get_submodule(f"{path}.{name}"), rows=width)
            for name in neurons.readers if width is not None else ():
                _resize_(layers[f"{path}.{name}"], columns=width)
    present = heads_of(base) if heads else {}
    if heads:
        check_stacks(base, present | heads)
    for root, number in heads.items():
        own = attentions[root].heads
        for name in own.rows:
            _resize_(layers[name], rows=layers[name].neurons // present[root] * number)
        reader: Any = layers[own.reader]
        columns = reader.weight.shape[reader.layout.columns]
        _resize_(reader, columns=columns // present[root] * number)
        resize_table_(attentions[root], base, number)
        attentions[root].fit_(number)
    for root, layer in layers.items():
        sizes = branches.get(root, ())
        if list(sizes) != layer.skip_sizes:
            layer.skip = SkipBranch(layer, sizes, config.skip_unit, config.skip_activation)
    finish_vision_(base, config)
    return not again and (bool(widths or branches or heads) or config.model_type == "saddle_deit")


@torch.no_grad()
def _resize_(module: Any, rows: int | None = None, columns: int | None = None) -> None:
    """Another number of rows or columns, or of normalised channels, with values that are to be initialised."""
    if not isinstance(module, Growable):
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.dim() and len(tensor) != rows:
                    new = torch.zeros(rows or 0, dtype=tensor.dtype, device=tensor.device)
                    new += name in ("weight", "running_var")
                    held[name] = nn.Parameter(new) if held is module._parameters else new
        module.num_features = rows
        return
    layer: Any = module
    layout = layout_of(layer)
    shape = list(layer.weight.shape)
    if rows is not None:
        shape[layout.rows] = rows
    if columns is not None:
        shape[layout.columns] = columns
    if shape != list(layer.weight.shape):
        layer.weight = nn.Parameter(layer.weight.new_empty(shape).normal_(std=0.02))
        if rows is not None and layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.new_zeros(rows))
        layer.fit_sizes_()
