"""What one use of a layer has shown once its gradient has come, and the tokens that are taken of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .calls import Call
from .drawing import rows_by_importance
from .inputs import input_square_norms, inputs_at, neuron_norms, neurons_at
from .tokens import Tokens


# Gradients are taken of the summed loss times this factor (a power of two, hence exact): in fp16 those of a mean loss
# would be flushed to zero.
LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class Shown:
    """
    What one use of a layer has shown, in the shapes of its input and output.

    Attributes:
        call ([`Call`]): The use.
        inputs (`Tensor`): Its input.
        gradient (`Tensor`): The gradient times `LOSS_SCALE`, at z (depth), φ(z) (width), or φ(z) u of gated neurons.
        pre_activation (`Tensor`, *optional*): z, for width.
        factor (`Tensor`, *optional*): u, of gated neurons.
    """

    call: Call
    inputs: Tensor
    gradient: Tensor
    pre_activation: Tensor | None = None
    factor: Tensor | None = None

    @property
    def kind(self) -> str:
        """What the gradient is for: `"depth"` or `"width"`."""
        return "depth" if self.pre_activation is None else "width"

    @property
    def square(self) -> Tensor:
        """Sums of squares of the pre-activations, over the tokens used for scales, as `kind` means them."""
        own, behind = self.call.pre_activation_square, self.call.width_square
        return own if self.pre_activation is None or behind is None else behind

    def owners(self, first: int) -> Tensor:
        """Samples that tokens belong to, int64, shape `(tokens,)`, on a rank whose first sample has this number."""
        samples = torch.arange(self.call.samples, device=self.inputs.device) + (self.call.first - first)
        return samples.repeat_interleave(self.call.tokens // self.call.samples)

    def tokens(self, owners: Tensor, rows: Tensor | None = None, weight: Tensor | None = None) -> Tokens:
        """Some of its tokens, or all, with their owners and the inverse probabilities that they were drawn with."""
        call, z, factor = self.call, self.pre_activation, self.factor
        return Tokens(
            module=call.module,
            inputs=inputs_at(self.inputs, call.module, rows),
            gradient=neurons_at(self.gradient, call.module, rows),
            gradient_scale=LOSS_SCALE,
            owner=owners if rows is None else owners.index_select(0, rows),
            weight=weight,
            pre_activation=None if z is None else neurons_at(z, call.module, rows),
            factor=None if factor is None else neurons_at(factor, call.module, rows),
            activation=None if z is None else call.activation,
            slope=None if z is None else call.slope,
        )

    def drawn(self, first: int, budget: int, seed: int) -> Tokens:
        """
        All tokens, or about `budget` of them in memory of their own, drawn by importance and weighted to stay
        unbiased. Padding with a gradient is used all the same, as the loss depends on it.
        """
        owners, mask = self.owners(first), self.call.mask
        if len(owners) <= budget and mask is None:
            return self.tokens(owners)
        norms = neuron_norms(self.gradient, self.call.module)
        importance = norms * (1 + input_square_norms(self.inputs, self.call.module))
        rows, weight = torch.arange(len(owners), device=owners.device), None
        if mask is not None:
            rows = rows[mask | (importance != 0)]
        if len(rows) > budget:
            rows, weight = rows_by_importance(importance, rows, budget, seed)
        wide = torch.promote_types(self.inputs.dtype, torch.float32)
        return self.tokens(owners, rows, None if weight is None else weight.to(wide))
