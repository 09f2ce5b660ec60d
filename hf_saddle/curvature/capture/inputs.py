"""What neurons answer and what they read, position by position: rows of tensors, and patches of images."""

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ...models.layouts import layout_of


Affine: TypeAlias = nn.Linear | Conv1D | nn.Conv2d


def input_size(module: Affine) -> int:
    """Number `d` of what one neuron of an affine layer reads: inputs, or the entries of a patch of its own group."""
    return module.weight.numel() // neuron_count(module)


def neuron_count(module: Affine) -> int:
    """Number `n` of neurons of an affine layer."""
    return module.weight.shape[layout_of(module).rows]


def column_size(module: Affine) -> int:
    """Number of weights that an affine layer has for each of its inputs, or input channels."""
    return module.weight.numel() // module.weight.shape[layout_of(module).columns]


def group_count(module: Affine) -> int:
    """Number of groups of neurons with inputs of their own: that of a convolution, else 1."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def neurons_at(value: Tensor, module: Affine, rows: Tensor | None = None) -> Tensor:
    """
    A layer's output, or what has its shape, at some positions.

    Args:
        value (`Tensor`): Shape `(..., n)`, of a convolution `(samples, n, height, width)`.
        module (`nn.Linear`, `Conv1D` or `nn.Conv2d`): The layer.
        rows (`Tensor`, *optional*): Positions, int64, counted sample by sample. Defaults to all.

    Returns:
        `Tensor`: Shape `(len(rows), n)`.
    """
    if not isinstance(module, nn.Conv2d):
        flat = value.reshape(-1, value.shape[-1])
        return flat if rows is None else flat.index_select(0, rows)
    if rows is None:
        return value.movedim(1, -1).reshape(-1, value.shape[1])
    image = value.flatten(2)
    picked: Tensor = image[rows // image.shape[-1], :, rows % image.shape[-1]]
    return picked


def neuron_norms(value: Tensor, module: Affine) -> Tensor:
    """Norms of a layer's output, or of what has its shape, at all positions, float64, shape `(positions,)`."""
    wide = torch.promote_types(value.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(value, dim=layout_of(module).channel, dtype=wide)
    return norms.flatten().double()


def inputs_at(value: Tensor, module: Affine, rows: Tensor | None = None) -> Tensor:
    """
    What the neurons of a layer read at some positions of its output; patches are unfolded for these only.

    Args:
        value (`Tensor`): The layer's input, shape `(..., d)`, of a convolution `(samples, channels, height, width)`.
        module (`nn.Linear`, `Conv1D` or `nn.Conv2d`): The layer.
        rows (`Tensor`, *optional*): Positions, int64, counted sample by sample. Defaults to all.

    Returns:
        `Tensor`: Shape `(len(rows), d)`, of a convolution with groups `(len(rows), groups, d)`.
    """
    if not isinstance(module, nn.Conv2d):
        flat = value.reshape(-1, value.shape[-1])
        return flat if rows is None else flat.index_select(0, rows)
    image = _padded(value, module)
    (height, width), (kernel, across) = _output_size(image, module), module.kernel_size
    if rows is None:
        rows = torch.arange(len(image) * height * width, device=image.device)
    sample, place = rows // (height * width), rows % (height * width)
    top, left = place // width * module.stride[0], place % width * module.stride[1]
    down = top[:, None] + module.dilation[0] * torch.arange(kernel, device=image.device)
    along = left[:, None] + module.dilation[1] * torch.arange(across, device=image.device)
    patches: Tensor = image[sample[:, None, None], :, down[:, :, None], along[:, None, :]]
    result = patches.movedim(-1, 1).flatten(1)
    return result if module.groups == 1 else result.view(len(rows), module.groups, -1)


def input_square_norms(value: Tensor, module: Affine) -> Tensor:
    """Square norms of what a layer's neurons read at all positions, float64, shape `(positions,)`."""
    wide = torch.promote_types(value.dtype, torch.float32)
    if not isinstance(module, nn.Conv2d):
        norms: Tensor = torch.linalg.vector_norm(value, dim=-1, dtype=wide)
        return norms.flatten().double().square()
    square = _padded(value, module).to(wide).square().sum(dim=1, keepdim=True)
    ones = square.new_ones(1, 1, *module.kernel_size)
    summed: Tensor = functional.conv2d(square, ones, stride=module.stride, dilation=module.dilation)
    return summed.flatten().double()


def extended(inputs: Tensor) -> Tensor:
    """`x̂ = [x; 1]`, shape `(..., d)` to `(..., d + 1)`."""
    return functional.pad(inputs, (0, 1), value=1.0)


def _padded(value: Tensor, module: nn.Conv2d) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(value, module._reversed_padding_repeated_twice, mode=mode)


def _output_size(image: Tensor, module: nn.Conv2d) -> tuple[int, int]:
    reach = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True)]
    height, width = (
        (size - span) // stride + 1 for size, span, stride in zip(image.shape[2:], reach, module.stride, strict=True)
    )
    return height, width
