"""Where the neurons and the inputs of an affine layer are: in its weight, its attributes and its output."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Layout:
    """
    The axes of an affine layer.

    Attributes:
        rows (`int`): Axis of the weight that has an entry for each neuron.
        columns (`int`): Axis of the weight that has an entry for each input, or input channel.
        outputs (`str`): Attribute of the layer with the number of neurons.
        inputs (`str`): Attribute of the layer with the number of inputs, or input channels.
        channel (`int`): Axis of inputs and outputs that the neurons are on.
    """

    rows: int
    columns: int
    outputs: str
    inputs: str
    channel: int

    def matrix(self, weight: Tensor) -> Tensor:
        """A weight as a matrix `(n, d)` of one row per neuron; of convolutions `d` counts the entries of a patch."""
        return weight.transpose(0, 1) if self.rows else weight.flatten(1)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`, for any number of rows; `like` is a weight of the same layer."""
        return matrix.transpose(0, 1) if self.rows else matrix.view(len(matrix), *like.shape[1:])


LAYOUTS: dict[type[nn.Module], Layout] = {
    nn.Linear: Layout(0, 1, "out_features", "in_features", -1),
    Conv1D: Layout(1, 0, "nf", "nx", -1),
    nn.Conv2d: Layout(0, 1, "out_channels", "in_channels", -3),
}


def layout_of(module: nn.Module) -> Layout:
    """
    The layout of an affine layer.

    Raises:
        ValueError: If the module is none.
    """
    for kind, layout in LAYOUTS.items():
        if isinstance(module, kind):
            return layout
    raise ValueError(f"A {type(module).__name__} is no affine layer; those are nn.Linear, Conv1D and nn.Conv2d.")
