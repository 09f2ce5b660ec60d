"""The inputs and gradients of one affine layer, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .activations import Activation
from .drawing import rows_by_importance
from .inputs import Affine, extended, input_square_norms, inputs_at, neuron_norms, neurons_at
from .ranks import Ranks
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
        return torch.float64 if self.inputs.dtype == torch.float64 else torch.float32

    @classmethod
    def draw(
        cls,
        module: Affine,
        value: Tensor,
        gradient: Tensor,
        *,
        owner: Tensor,
        budget: int,
        seed: int,
        gradient_scale: float = 1.0,
        mask: Tensor | None = None,
        pre_activation: Tensor | None = None,
        factor: Tensor | None = None,
        activation: Activation | None = None,
        slope: Tensor | None = None,
    ) -> "Tokens":
        """
        The tokens of one use of a layer, or about `budget` of them in memory of their own, drawn by importance and
        weighted to stay unbiased.

        Args:
            module (`nn.Linear`, `Conv1D` or `nn.Conv2d`): The layer.
            value (`Tensor`): Its input.
            gradient (`Tensor`): The gradient, of the shape of its output.
            owner (`Tensor`): Sample of every token, int64, shape `(tokens,)`.
            budget (`int`): Number of tokens that may be kept.
            seed (`int`): Seed of what is drawn.
            gradient_scale (`float`, *optional*, defaults to 1.0): What the gradient is multiplied by.
            mask (`Tensor`, *optional*): Tokens that are no padding, bool, shape `(tokens,)`. Padding with a gradient
                is used all the same, as the loss depends on it.
            pre_activation, factor (`Tensor`, *optional*): `z` and `u`, of the shape of the layer's output.
            activation ([`Activation`], *optional*): `φ`.
            slope (`Tensor`, *optional*): `a`, shape `(n,)`.
        """
        rows, weight = None, None
        if len(owner) > budget or mask is not None:
            importance = neuron_norms(gradient, module) * (1 + input_square_norms(value, module))
            rows = torch.arange(len(owner), device=owner.device)
            if mask is not None:
                rows = rows[mask | (importance != 0)]
            if len(rows) > budget:
                rows, weight = rows_by_importance(importance, rows, budget, seed)

        def of_output(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else neurons_at(tensor, module, rows)

        return cls(
            module=module,
            inputs=inputs_at(value, module, rows),
            gradient=neurons_at(gradient, module, rows),
            gradient_scale=gradient_scale,
            owner=owner if rows is None else owner.index_select(0, rows),
            weight=None if weight is None else weight.to(_wide(value.dtype)),
            pre_activation=of_output(pre_activation),
            factor=of_output(factor),
            activation=activation,
            slope=slope,
        )

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
        chosen = source.index_select(0, rows)
        return (chosen if neurons is None else chosen.index_select(1, neurons)).to(self.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
