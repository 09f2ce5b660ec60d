"""What other modules have for each neuron or attention head, drafted without touching them: norms, and tables."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .slices import ParameterDraft


class EntriesDraft:
    """
    Parameters of another module that have an entry for each neuron, or attention head, on one axis: those of a batch
    normalisation, or a table of positions.

    Args:
        path (`str`): Path of the module in the model.
        module (`nn.Module`): The module.
        axis (`int`): The axis.
        names (`Iterable[str]`, *optional*): Which of its parameters; by default all.
    """

    def __init__(self, path: str, module: nn.Module, axis: int = 0, names: Iterable[str] | None = None):
        self.path, self.module, self.axis = path, module, axis
        own = dict(module.named_parameters(recurse=False))
        self.parameters = {name: ParameterDraft(own[name], own[name]) for name in (own if names is None else names)}
        # What has no entry for each channel, as the number of batches seen, stays.
        held = () if names is not None else module.named_buffers(recurse=False)
        self.buffers = {name: value for name, value in held if value.dim()}

    def copy_(self, places: Tensor) -> None:
        """Append a copy of each of these entries, statistics included, which takes half of its gradient."""
        for parameter in self.parameters.values():
            parameter.copy_(self.axis, places, share=0.5)
        for name, value in self.buffers.items():
            self.buffers[name] = torch.cat([value, value.index_select(0, places.to(value.device))])

    def append_(self, count: int) -> None:
        """Append entries of 0."""
        for parameter in self.parameters.values():
            parameter.append_zeros_(count, self.axis)
