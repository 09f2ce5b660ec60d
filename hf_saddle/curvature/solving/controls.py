"""First-order and random scores of neurons: what curvature has to be compared with."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..capture.inputs import input_size
from ..capture.tokens import Tokens
from ..ranks import Ranks
from .operator import add_products_


_SLICE = 2048


def weight_gradient(tokens: Tokens, samples: int, ranks: Ranks) -> Tensor:
    """The gradient, over the samples of all ranks, of the mean loss in `[W, b]`, transposed, shape `(d + 1, n)`."""
    device = tokens.inputs.device
    result = torch.zeros(input_size(tokens.module) + 1, tokens.neurons, dtype=tokens.dtype, device=device)
    for rows in torch.split(torch.arange(len(tokens), device=device), _SLICE):
        add_products_(result, *tokens.segment(rows))
    return ranks.sum(result.div_(samples))


def _random(gradient: Tensor, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    size, neurons = gradient.shape
    score = torch.rand(neurons, generator=generator, dtype=torch.float64).to(gradient.device, gradient.dtype)
    direction = torch.randn(size, neurons, generator=generator, dtype=torch.float64)
    return score, direction.to(gradient.device, gradient.dtype)


def _grad_norm(gradient: Tensor, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return gradient.norm(dim=0), gradient


def _gradmax(gradient: Tensor, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # A unit p(x̂) → all neurons has the outgoing gradient norm ‖G p‖, largest for the top singular vector of G
    # (arXiv 2201.05125, Sec. 3.2); neuron i receives the share σ₁ |u_1i| of it.
    left, singular, right = torch.linalg.svd(gradient.t(), full_matrices=False)
    return singular[0] * left[:, 0].abs(), right[0][:, None].expand_as(gradient)


def _paper_score(gradient: Tensor, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # The lowest eigenvalue of 1·gᵀ in the released code of arXiv 2402.12418; its new rows are ±0.2 w.
    return gradient[:-1].sum(dim=0).clamp(max=0), weight


CONTROLS: dict[str, Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]] = {
    "random": _random,
    "grad_norm": _grad_norm,
    "gradmax": _gradmax,
    "paper_score": _paper_score,
}


def control(
    name: str, gradient: Tensor, weight: Tensor, generator: torch.Generator, biased: bool = True
) -> tuple[Tensor, Tensor]:
    """
    Score and unit direction of every neuron under a control criterion.

    Args:
        name (`str`): One of `CONTROLS`.
        gradient (`Tensor`): From [`weight_gradient`], shape `(d + 1, n)`.
        weight (`Tensor`): `[W, b]` transposed, shape `(d + 1, n)`.
        generator (`torch.Generator`): Source of the random control.
        biased (`bool`, *optional*, defaults to `True`): Whether the layer has a bias; else the directions end in 0.

    Returns:
        `tuple[Tensor, Tensor]`: Shapes `(n,)` and `(d + 1, n)`. A vanishing direction is replaced by that of the bias,
        or of the first input where there is none.
    """
    score, direction = CONTROLS[name](gradient, weight, generator)
    direction = direction.clone()
    if not biased:
        direction[-1] = 0
    norm = direction.norm(dim=0)
    instead = torch.zeros_like(direction)
    instead[-1 if biased else 0] = 1
    return score, torch.where(norm > 0, direction / norm.clamp_min(torch.finfo(norm.dtype).tiny), instead)
