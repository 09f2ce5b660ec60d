"""The inputs and gradients of one affine layer, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..activations import Activation
from ..ranks import Ranks
from .inputs import Affine, extended
from .rowspace import RowSpace


@dataclass(frozen=True)
class Tokens:
    """
    What was captured at one affine layer, token by token (position by position, of convolutions).

    The curvature matrices are `S_i = 1/N Σ_t weight_t c_ti x̂_t x̂_tᵀ` with `x̂ = [x; 1]`, `N` the number of samples
    on all ranks and `c = gradient` (depth) or `gradient · φ''(z) a²` (width), where `a` is the slope of a batch
    normalisation between the layer and the activation. Those of gated neurons `h = φ(g) u` are made of four blocks
    with `c = gradient · φ''(g) u` (gate, gate), `gradient · φ'(g)` (gate, up) and 0 (up, up).
    """

    module: Affine  # the layer
    inputs: Tensor  # (tokens, d), of the layer, as captured; of groups of channels (tokens, groups, d)
    gradient: Tensor  # (tokens, n), of the summed loss times `gradient_scale`, at z (depth) or φ(z) (width)
    gradient_scale: float
    owner: Tensor  # (tokens,) int64, index on this rank of the sample that a token belongs to
    weight: Tensor | None = None  # (tokens,) inverse probability of a token to be drawn
    pre_activation: Tensor | None = None  # (tokens, n), z, for width
    factor: Tensor | None = None  # (tokens, n), u, of gated neurons, for width
    activation: Activation | None = None
    slope: Tensor | None = None  # (n,), a
    extended: bool = False  # whether `inputs` are x̂ or coordinates of it, shape (tokens, coordinates)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def neurons(self) -> int:
        return self.gradient.shape[1]

    @property
    def rows(self) -> int:
        """How many rows of weights a neuron has: one, or those of gate and up."""
        return 1 if self.factor is None else 2

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all products: float32, and float64 for a float64 model."""
        return torch.promote_types(self.inputs.dtype, torch.float32)

    @classmethod
    def concatenate(cls, parts: "list[Tokens]") -> "Tokens":
        """One record of several; a single one is not copied."""
        if len(parts) == 1:
            return parts[0]

        def joined(values: Sequence[Tensor | None]) -> Tensor | None:
            given = [value for value in values if value is not None]
            return torch.cat(given) if given else None

        return replace(
            parts[0],
            inputs=torch.cat([part.inputs for part in parts]),
            gradient=torch.cat([part.gradient for part in parts]),
            owner=torch.cat([part.owner for part in parts]),
            weight=torch.cat([part._weights() for part in parts]),
            pre_activation=joined([part.pre_activation for part in parts]),
            factor=joined([part.factor for part in parts]),
        )

    def gathered(self, ranks: Ranks, first: int) -> "Tokens":
        """The tokens of all ranks; `first` is the number of samples on lower ranks."""

        def all_of(value: Tensor | None) -> Tensor | None:
            return None if value is None else ranks.concatenate(value)

        if ranks.size == 1:
            return self
        return replace(
            self,
            inputs=ranks.concatenate(self.inputs),
            gradient=ranks.concatenate(self.gradient),
            owner=ranks.concatenate(self.owner + first),
            weight=ranks.concatenate(self._weights()),
            pre_activation=all_of(self.pre_activation),
            factor=all_of(self.factor),
        )

    def row_space(self) -> RowSpace | None:
        """The space that their `x̂` span, without the entry of a bias that the layer does not have."""
        inputs = self.extended_inputs()
        if self.module.bias is None:
            inputs[:, -1] = 0
        return RowSpace.of(inputs)

    def extended_inputs(self, rows: Tensor | None = None) -> Tensor:
        """`x̂ = [x; 1]` of some tokens or all, shape `(tokens, d + 1)`, or `(tokens, groups, d + 1)`."""
        inputs = (self.inputs if rows is None else self.inputs.index_select(0, rows)).to(self.dtype)
        return inputs if self.extended else extended(inputs)

    def segment(
        self, rows: Tensor, neurons: Tensor | None = None, transform: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Inputs and coefficients of some tokens and neurons, for a [`CurvatureOperator`].

        Args:
            rows (`Tensor`): The tokens, int64.
            neurons (`Tensor`, *optional*): The neurons, int64. Defaults to all.
            transform (`Callable`, *optional*): Applied to `x̂`.
        """
        inputs = self.extended_inputs(rows)
        if transform is not None:
            inputs = transform(inputs)
        if self.module.bias is None and not self.extended:
            # Where a layer has no bias its directions have no entry for one, in whitened coordinates neither.
            inputs[..., -1] = 0
        if inputs.dim() == 3:
            # Each neuron reads the patches of its own group.
            chosen = torch.arange(self.neurons, device=inputs.device) if neurons is None else neurons
            inputs = inputs.index_select(1, chosen // (self.neurons // inputs.shape[1]))
        return inputs, self.coefficients(rows, neurons)

    def coefficients(self, rows: Tensor, neurons: Tensor | None = None) -> Tensor:
        """
        The coefficients `weight · c` of some tokens and neurons, shape `(len(rows), len(neurons))`; of gated neurons
        those of the blocks (gate, gate) and (gate, up), shape `(len(rows), 2, len(neurons))`.
        """
        gradient = self._take(self.gradient, rows, neurons)
        factor = 1 / self.gradient_scale
        if self.weight is None:
            gradient = gradient * factor
        else:
            gradient = gradient * (self.weight.index_select(0, rows).to(self.dtype) * factor)[:, None]
        if self.pre_activation is None or self.activation is None:
            return gradient
        z = self._take(self.pre_activation, rows, neurons)
        result = self.activation.second(z).mul_(gradient)
        if self.factor is not None:
            result.mul_(self._take(self.factor, rows, neurons))
            return torch.stack([result, self.activation.first(z).mul_(gradient)], dim=1)
        if self.slope is None:
            return result
        slope = self.slope.to(self.dtype)
        return result.mul_((slope if neurons is None else slope.index_select(0, neurons)).square())

    def coefficient_squares(self, rows: Tensor) -> Tensor:
        """
        The sum of the squares of each neuron's coefficients over some tokens, of a gated one as its matrix has them,
        shape `(n,)`.
        """
        squares = self.coefficients(rows).square().sum(dim=0)
        return squares if squares.dim() == 1 else squares[0] + 2 * squares[1]

    def importance(self) -> Tensor:
        """
        The size of each token's share in the curvature matrices, `weight · ‖gradient‖ · ‖x̂‖²`, float64, `(tokens,)`.

        Drawing in proportion to it makes the sum of the drawn terms vary least. NaN or infinity anywhere in the
        captured tensors turns up here.
        """
        gradient = torch.linalg.vector_norm(self.gradient, dim=1, dtype=self.dtype).double()
        inputs = torch.linalg.vector_norm(self.inputs.flatten(1), dim=1, dtype=self.dtype).double()
        importance: Tensor = self._weights().double() * gradient * (1 + inputs.square()) / self.gradient_scale
        return importance

    def _weights(self) -> Tensor:
        if self.weight is None:
            return torch.ones(len(self), dtype=self.dtype, device=self.inputs.device)
        return self.weight

    def _take(self, source: Tensor, rows: Tensor, neurons: Tensor | None) -> Tensor:
        chosen = source if neurons is None else source.index_select(1, neurons)
        return chosen.index_select(0, rows).to(self.dtype)
