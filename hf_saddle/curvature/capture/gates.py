"""Gated neurons `h = φ(gate(x)) · up(x)` in a forward pass: their two layers, and whether their reader reads `h`."""

import torch
from torch import Tensor

from ..activations import Activation
from ..recognition import Recognised
from .calls import Output
from .described import Gate
from .inputs import Affine, column_size, neurons_at
from .receivers import tolerance


class Gates:
    """
    The described gates of a model, and what their layers answered in the forward pass that runs.

    Args:
        gates (`list[Gate]`): The gates.
        recognised ([`Recognised`]): The model's activations.
    """

    def __init__(self, gates: list[Gate], recognised: Recognised):
        self.gates, self._recognised = gates, recognised
        self._of = {name: gate for gate in gates for name in (gate.gate, gate.up)}
        self._broken: set[str] = set()
        self._answers: dict[str, Output] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a layer is one of the two of a gate."""
        return name in self._of

    def clear(self) -> None:
        """Forget the last forward pass."""
        self._answers.clear()

    def note(self, name: str, answer: Output) -> None:
        """Note what a layer of a gate answered."""
        self._answers[name] = answer
        if answer.call is not None and name == self._of[name].up:
            answer.call.no_curvature = f"its neurons are split together with those of {self._of[name].gate}"

    def take(self, gate: Gate, reader: str) -> tuple[Output, Output] | None:
        """The answers of both layers, for one of their readers; `None` where they are not to be split."""
        first, second = self._answers.get(gate.gate), self._answers.get(gate.up)
        if first is None or second is None or gate.gate in self._broken or not torch.is_grad_enabled():
            return None
        if reader == gate.readers[-1]:
            del self._answers[gate.gate], self._answers[gate.up]  # checkpointing may free them
        return first, second

    def connect(self, gate: Gate, first: Output, second: Output, reader: str, module: Affine, hidden: Tensor) -> bool:
        """Note at the calls that `reader` reads their product; `False` if it does not, which they note too."""
        assert first.call is not None and second.call is not None
        activation = self._activation(gate, first, second, hidden)
        if isinstance(activation, str):
            self._broken.add(gate.gate)
            first.call.no_curvature = activation
            return False
        first.call.activation, first.call.partner = activation, second.call
        squares = [first.call.pre_activation_square, second.call.pre_activation_square]
        first.call.width_square = torch.cat(squares)
        first.call.consumers[reader] = column_size(module)
        return True

    def _activation(self, gate: Gate, first: Output, second: Output, hidden: Tensor) -> Activation | str:
        """The activation of a gate, or why what a layer reads is not what the gate answers."""
        z, factor = first.row(), second.row()
        activation = self._recognised.activation(gate.activation, z)
        if isinstance(activation, str):
            return f"its output is read by an activation without curvature: {activation}"
        if hidden.shape != z.shape or factor.shape != z.shape:
            return f"its output is not multiplied element by element by that of {gate.up}"
        if z._version != first.version or factor._version != second.version:
            return f"its output or that of {gate.up} is overwritten"
        if first.inputs.data_ptr() != second.inputs.data_ptr():
            return f"{gate.up} reads another input"
        if (first.module.bias is None) != (second.module.bias is None):
            return f"only one of it and {gate.up} has a bias"
        count = len(z.reshape(-1, z.shape[-1]))
        rows = torch.arange(0, count, max(1, count // 64), device=z.device)
        z, factor, actual = (neurons_at(part, first.module, rows) for part in (z, factor, hidden.detach()))
        expected = gate.activation.forward(z) * factor
        if not bool((actual - expected).norm() <= tolerance(actual.dtype) * expected.norm()):
            return f"what reads it is not the product of its activation and {gate.up}"
        return activation
