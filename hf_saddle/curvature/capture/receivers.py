"""What happens when a gradient arrives: it is handed over, and the chain rule tells whether something else reads z."""

from collections.abc import Callable

import torch
from torch import Tensor

from .calls import Call
from .described import Gate
from .inputs import neurons_at
from .shown import Shown


# Some tokens are checked by the chain rule: ∂L/∂z = ∂L/∂h φ'(z) holds only if the activation is the sole reader of z.
_CHECK_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
# Half-precision tensors carry their own rounding, about 2⁻⁸ of each value for bfloat16.
_HALF_TOLERANCE = 0.1

Receiver = Callable[[Shown], None]


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways to compute something may differ, relative to its size."""
    return _CHECK_TOLERANCE.get(dtype, _HALF_TOLERANCE)


def depth_receiver(call: Call, receive: Receiver) -> Callable[[Tensor, Tensor], None]:
    """Takes the gradient at z, after that behind the activation has come."""

    def take(gradient: Tensor, inputs: Tensor) -> None:
        if call.chain_rule is not None:
            actual = neurons_at(gradient, call.module, call.few()).to(call.chain_rule.dtype)
            error = (actual - call.chain_rule).norm()
            # What is not finite says nothing here; it is found when the layer is solved.
            if bool(error > tolerance(gradient.dtype) * actual.norm()):
                call.other_readers.append("an operation that is not a module")
            call.chain_rule = None
        receive(Shown(call, inputs, gradient))

    return take


def width_receiver(call: Call, receive: Receiver, gate: Gate | None = None) -> Callable[..., None]:
    """Takes the gradient at φ(z), of a gate at φ(z) u."""

    def take(gradient: Tensor, inputs: Tensor, pre_activation: Tensor, factor: Tensor | None = None) -> None:
        if call.activation is not None:
            z, few = _few(call, pre_activation, gradient)
            call.chain_rule = call.activation.first(z) * few
            if call.slope is not None:
                call.chain_rule *= call.slope.to(few.dtype)
            if gate is not None and factor is not None and call.partner is not None:
                call.chain_rule *= _few(call, factor)[0]
                call.partner.chain_rule = gate.activation.forward(z) * few
        receive(Shown(call, inputs, gradient, pre_activation, factor))

    return take


def _few(call: Call, *values: Tensor) -> list[Tensor]:
    parts = [neurons_at(value, call.module, call.few()) for value in values]
    return [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
