"""The rows of the neurons of a layer: in which layers they are, and what directions they may change in."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.sites import Site
from .operators import Operator


def find_site(model: GrowablePreTrainedModel, path: str) -> Site:
    """
    The growable layer at `path`, with where it is.

    Raises:
        ValueError: If the model has none there.
    """
    for site in model.growable_linears():
        if site.path == path:
            return site
    raise ValueError(
        f"The model has no growable linear {path!r}. `[site.path for site in model.growable_linears()]` lists them."
    )


def layers_of(model: GrowablePreTrainedModel, site: Site, operator: Operator) -> list[Any]:
    """The layers that have a row for each of the neurons that an operator grows; one, but for gated ones."""
    if operator.deepens or site.neurons is None:
        return [site.module]
    return [find_site(model, row).module for row in site.neurons.rows]


def random_directions(count: int, size: int, seed: int, biases: Sequence[bool] | None = None) -> Tensor:
    """
    Random unit vectors, shape `(count, size)`, from a generator of their own.

    Args:
        count (`int`): Number of vectors.
        size (`int`): Number of entries.
        seed (`int`): Seed of the generator.
        biases (`Sequence[bool]`, *optional*):
            For each of the equal parts of a vector, whether its last entry may differ from 0; by default all may.
    """
    values = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    for part, free in zip(values.chunk(len(biases or [True]), dim=1), biases or [True], strict=True):
        part[:, -1] *= free
    directions: Tensor = values / values.norm(dim=1, keepdim=True)
    return directions
