"""The inputs and gradients of one linear layer, token by token, and unbiased selections of them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .activations import Activation
from .ranks import Ranks


@dataclass(frozen=True)
class Tokens:
    """
    What was captured at one linear layer.

    The curvature matrices are `S_i = 1/N Σ_t weight_t c_ti x̂_t x̂_tᵀ` with `x̂ = [x; 1]`, `N` the number of samples
    on all ranks and `c = gradient` (depth) or `gradient · φ''(z)` (width).
    """

    inputs: Tensor  # (tokens, d), of the layer, as captured
    gradient: Tensor  # (tokens, n), of the summed loss times `gradient_scale`, at z (depth) or φ(z) (width)
    gradient_scale: float
    owner: Tensor  # (tokens,) int64, index on this rank of the sample that a token belongs to
    weight: Tensor | None = None  # (tokens,) inverse probability of a token to be drawn
    pre_activation: Tensor | None = None  # (tokens, n), z, for width
    activation: Activation | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def neurons(self) -> int:
        return self.gradient.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all products: float32, and float64 for a float64 model."""
        return torch.float64 if self.inputs.dtype == torch.float64 else torch.float32

    @classmethod
    def concatenate(cls, parts: "list[Tokens]") -> "Tokens":
        """One record of several; a single one is not copied."""
        if len(parts) == 1:
            return parts[0]
        weights = [part._weights() for part in parts]
        first = parts[0]
        return replace(
            first,
            inputs=torch.cat([part.inputs for part in parts]),
            gradient=torch.cat([part.gradient for part in parts]),
            owner=torch.cat([part.owner for part in parts]),
            weight=torch.cat(weights),
            pre_activation=(
                None
                if first.pre_activation is None
                else torch.cat([part.pre_activation for part in parts if part.pre_activation is not None])
            ),
        )

    def extended_inputs(self, rows: Tensor) -> Tensor:
        """`x̂ = [x; 1]` of some tokens, shape `(len(rows), d + 1)`."""
        chosen = self.inputs.index_select(0, rows).to(self.dtype)
        return torch.nn.functional.pad(chosen, (0, 1), value=1.0)

    def coefficients(self, rows: Tensor, neurons: Tensor | None = None) -> Tensor:
        """The coefficients `weight · c` of some tokens and neurons, shape `(len(rows), len(neurons))`."""
        result = self._take(self.gradient, rows, neurons)
        if self.pre_activation is not None and self.activation is not None:
            result = self.activation.second(self._take(self.pre_activation, rows, neurons)).mul_(result)
        factor = 1 / self.gradient_scale
        if self.weight is None:
            return result * factor
        return result * (self.weight.index_select(0, rows).to(self.dtype) * factor)[:, None]

    def importance(self) -> Tensor:
        """
        The size of each token's share in the curvature matrices, `weight · ‖gradient‖ · ‖x̂‖²`, float64, `(tokens,)`.

        Drawing in proportion to it makes the sum of the drawn terms vary least. NaN or infinity anywhere in the
        captured tensors turns up here.
        """
        gradient = torch.linalg.vector_norm(self.gradient, dim=1, dtype=self.dtype).double()
        inputs = torch.linalg.vector_norm(self.inputs, dim=1, dtype=self.dtype).double()
        importance: Tensor = self._weights().double() * gradient * (1 + inputs.square()) / self.gradient_scale
        return importance

    def at_most(self, budget: int, seed: int) -> "Tokens":
        """
        The tokens themselves, or about `budget` of them in memory of their own, drawn by importance and weighted to
        stay unbiased.
        """
        if len(self) <= budget or not bool((importance := self.importance()).sum() > 0):
            return self
        generator = torch.Generator().manual_seed(seed)
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        rows, weight = draw_rows(importance, budget, uniform, Ranks())
        return replace(
            self,
            inputs=self.inputs.index_select(0, rows),
            gradient=self.gradient.index_select(0, rows),
            owner=self.owner.index_select(0, rows),
            weight=weight.to(self.dtype) * self._weights().index_select(0, rows),
            pre_activation=None if self.pre_activation is None else self.pre_activation.index_select(0, rows),
        )

    def _weights(self) -> Tensor:
        if self.weight is None:
            return torch.ones(len(self), dtype=self.dtype, device=self.inputs.device)
        return self.weight

    def _take(self, source: Tensor, rows: Tensor, neurons: Tensor | None) -> Tensor:
        chosen = source.index_select(0, rows)
        return (chosen if neurons is None else chosen.index_select(1, neurons)).to(self.dtype)


def draw_rows(importance: Tensor, budget: int, uniform: float, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """
    Systematic sampling of tokens, with probabilities proportional to their importance (Madow 1949).

    Tokens are laid on a line, each as long as its probability `min(1, budget · importance / total)`; those hit by the
    points `uniform, uniform + 1, …` are taken. Neighbours (tokens of one sample) are thus never taken by a whim
    together, and the line runs over all ranks, so that what is drawn does not depend on how samples are spread over
    processes.

    Args:
        importance (`Tensor`): Not negative, float64, shape `(tokens,)`, of this rank.
        budget (`int`): Number of tokens wanted on all ranks together.
        uniform (`float`): The first point, in [0, 1).
        ranks (`Ranks`): Processes that share the line.

    Returns:
        `tuple[Tensor, Tensor]`: Rows, int64, and their inverse probabilities, float64.
    """
    total = ranks.sum(importance.sum())
    probability = (importance * (budget / total)).clamp(max=1)
    before, _ = ranks.before_and_total(probability.sum())
    position = torch.cumsum(probability, dim=0) + (before + uniform)
    points = position.ceil()
    points_before = torch.cat([(before + uniform).ceil().reshape(1), points[:-1]])
    rows = (points > points_before).nonzero()[:, 0]
    return rows, 1 / probability[rows]
