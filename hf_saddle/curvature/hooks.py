"""Forward hooks that hand over inputs and output gradients of affine layers while one backward pass runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .activations import Activation
from .calls import Call
from .described import Described, Gate
from .inputs import Affine, column_size, group_count, neuron_count, neurons_at
from .moments import pre_activation_square
from .padding import NO_MASKS, Masks, rows_for_scale
from .recognition import activation_of, may_be_activation
from .taps import Known, tap


# Gradients are taken of the summed loss times this factor (a power of two, hence exact): in fp16 those of a mean loss
# would be flushed to zero.
LOSS_SCALE = 1024.0
# Some tokens are checked by the chain rule: ∂L/∂z = ∂L/∂h φ'(z) holds only if the activation is the sole reader of z.
_CHECK_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
# Half-precision tensors carry their own rounding, about 2⁻⁸ of each value for bfloat16.
_HALF_TOLERANCE = 0.1


Receiver = Callable[[Call, str, Tensor, Tensor, Tensor | None, Tensor | None], None]


@dataclass(frozen=True)
class _Output:
    """What a layer answered in a forward pass; of a recomputation without the call that it belongs to."""

    call: Call | None
    module: Affine
    inputs: Tensor
    version: int
    value: Tensor | None = None  # of the rows of a gate
    slope: Tensor | None = None  # of a batch normalisation that it went through
    norms: int = 0

    def row(self) -> Tensor:
        """The output of one of the rows of a gate."""
        assert self.value is not None
        return self.value.detach()


class Hooks:
    """
    Context manager that watches affine layers of a model.

    Args:
        model (`nn.Module`): The model; it is used as it is (eval mode is the caller's business).
        linears (`dict[str, nn.Module]`): The layers to be analysed, by name.
        receive (`Callable`): Called during the backward pass with the call, `"depth"` or `"width"`, the layer's input,
            the gradient at z or φ(z) and, for width, z, all of the shapes that the layer's input and output have. Of
            gated neurons the gradient is that at `φ(z) u`, and `u` comes last.
        width (`bool`): Whether activations and consumers are looked for.
        described ([`Described`], *optional*): What is known of the model.

    Attributes:
        calls (`dict[str, list[Call]]`): The uses of each layer in the forward pass that ran last.
        skipped (`dict[str, str]`): Layers that cannot be analysed, with the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        linears: dict[str, Affine],
        receive: Receiver,
        width: bool,
        described: Described | None = None,
    ):
        self.model, self.linears, self.receive, self.width = model, linears, receive, width
        self.calls: dict[str, list[Call]] = {}
        self.skipped: dict[str, str] = {}
        self._decoder = None if described is None else described.decoder
        gates = () if described is None or not width else described.gates
        self._gates = [gate for gate in gates if gate.gate in linears]
        self._gate_of = {name: gate for gate in self._gates for name in (gate.gate, gate.up)}
        self._no_gates: set[str] = set()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._activations: dict[nn.Module, Activation | str] = {}
        self._samples, self._first, self._masks = 0, 0, NO_MASKS
        self._recording, self._in_decoder = False, False
        self._anchor = torch.zeros((), requires_grad=True)

    def __enter__(self) -> "Hooks":
        for gate in self._gates:
            for reader in gate.readers:
                module = self.model.get_submodule(reader)
                self._handles.append(module.register_forward_pre_hook(self._gated_hook(gate, reader)))
        for name, module in self.model.named_modules():
            if isinstance(module, Affine):
                self._handles.append(module.register_forward_hook(self._linear_hook(name)))
            elif self.width and isinstance(module, nn.BatchNorm2d):
                self._handles.append(module.register_forward_hook(self._norm_hook(name)))
            elif self.width and may_be_activation(module):
                self._handles.append(module.register_forward_hook(self._activation_hook(name)))
        if self._decoder is not None:
            self._handles.append(self._decoder.register_forward_pre_hook(self._enter_decoder, with_kwargs=True))
            self._handles.append(self._decoder.register_forward_hook(self._leave_decoder))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forward(
        self,
        compute_loss: Callable[[], Tensor],
        samples: int,
        device: torch.device,
        first: int = 0,
        masks: Masks = NO_MASKS,
    ) -> Tensor:
        """
        Run the forward pass of one batch.

        Args:
            compute_loss (`Callable`): Returns the mean loss of the batch.
            samples (`int`): Number of samples of the batch.
            device (`torch.device`): Where the model is.
            first (`int`, *optional*, defaults to 0): Number of samples in earlier batches and on lower ranks.
            masks ([`Masks`], *optional*): Which positions of the batch are no padding.
        """
        self.calls, self._samples, self._first, self._masks = {}, samples, first, masks
        self._recording, self._in_decoder = True, False
        self._outputs, self._activated, self._encoded = Known(), Known(), Known()
        self._rows: dict[str, _Output] = {}
        self._anchor = torch.zeros((), requires_grad=True, device=device)
        try:
            return compute_loss()
        finally:
            self._recording = False

    def backward(self, loss: Tensor) -> None:
        """
        Run the backward pass; gradients are handed to `receive` as they come.

        Raises:
            ValueError: If reentrant activation checkpointing is in use.
        """
        try:
            scaled = loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss
            torch.autograd.grad(scaled * (self._samples * LOSS_SCALE), self._anchor, allow_unused=True)
        except RuntimeError as error:
            if "is incompatible with .grad()" not in str(error) and "not compatible with .grad()" not in str(error):
                raise
            raise ValueError(
                "Reentrant activation checkpointing cannot be probed. Switch it off for the analysis, or use the "
                "other kind (`use_reentrant=False`)."
            ) from error

    def _linear_hook(self, name: str) -> Callable[..., Any]:
        gate = self._gate_of.get(name)
        watched = name in self.linears or gate is not None

        def hook(module: Affine, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self._recording:
                self._note_reader(name, module, args[0])
            if not watched:
                return None
            reason = self._why_not(module, args[0])
            if reason is not None:
                self.skipped.setdefault(name, reason)
                return None
            inputs = args[0].detach()
            call, receive = None, None
            if self._recording:
                call = self._call(name, module, args[0], output.detach())
                self.calls.setdefault(name, []).append(call)
                receive = self._depth_receiver(call)
            tapped = tap(output, self._anchor, receive, inputs)
            if self.width:
                found = _Output(call, module, inputs, tapped._version, tapped if gate is not None else None)
                self._outputs.add(tapped, found)
                if gate is not None:
                    self._rows[name] = found
                    if call is not None and name == gate.up:
                        call.no_curvature = f"its neurons are split together with those of {gate.gate}"
            return tapped

        return hook

    def _call(self, name: str, module: Affine, inputs: Tensor, output: Tensor) -> Call:
        tokens = output.numel() // neuron_count(module)
        mask = self._mask(module, inputs, tokens // self._samples)
        rows = rows_for_scale(self._samples, tokens // self._samples, self._first, mask, output.device)
        return Call(
            linear=name,
            module=module,
            samples=self._samples,
            first=self._first,
            tokens=tokens,
            mask=None if mask is None else mask.flatten().to(output.device),
            rows=rows,
            pre_activation_square=pre_activation_square(output, module, rows),
        )

    def _mask(self, module: Affine, inputs: Tensor, positions: int) -> Tensor | None:
        """The mask of the positions that a layer works on, if the batch has one."""
        across = self._encoded.get(inputs) is not None
        mask = self._masks.decoder if self._in_decoder and not across else self._masks.own
        fits = mask is not None and not isinstance(module, nn.Conv2d) and mask.shape[1] == positions
        return mask if fits else None

    def _enter_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._in_decoder = True
        states = kwargs.get("encoder_hidden_states")
        if self._recording and isinstance(states, Tensor):
            self._encoded.add(states, True)

    def _leave_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._in_decoder = False

    def _norm_hook(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.BatchNorm2d, args: tuple[Any, ...], output: Tensor) -> None:
            found = self._outputs.get(args[0]) if args else None
            if found is None or not self._is_whole(found, args[0]):
                return
            if module.training or module.running_var is None or module.running_mean is None:
                if found.call is not None:
                    found.call.no_curvature = f"{name} normalises its output by the statistics of the batch"
                return
            slope = (module.running_var + module.eps).rsqrt()
            norms = 0
            if module.weight is not None:
                slope, norms = slope * module.weight.detach(), 2
            behind = _Output(found.call, found.module, found.inputs, output._version, slope=slope, norms=norms)
            self._outputs.add(output, behind)

        return hook

    @staticmethod
    def _is_whole(found: _Output, tensor: Tensor) -> bool:
        """Whether a tensor in the memory of a layer's output has its axes; those of images are often moved."""
        return not isinstance(found.module, nn.Conv2d) or (
            tensor.dim() == 4 and tensor.shape[1] == neuron_count(found.module) and tensor.is_contiguous()
        )

    def _activation_hook(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            found: _Output | None = self._outputs.get(args[0]) if args else None
            if found is None or not torch.is_grad_enabled() or not self._is_whole(found, args[0]):
                return None
            call = found.call
            same_memory = isinstance(output, Tensor) and output.data_ptr() == args[0].data_ptr()
            if same_memory and args[0]._version == found.version:
                # It hands on what it got, such as dropout in eval mode.
                return None
            if found.value is not None:
                if call is not None:
                    call.in_place |= same_memory
                return None  # what it answers is multiplied before a layer reads it
            activation = self._activation(module, args[0].detach())
            if isinstance(activation, str):
                if call is not None:
                    call.no_curvature = f"its output is read by an activation without curvature: {activation}"
                return None
            receive = None
            if call is not None:
                if call.activation is not None:
                    call.other_readers.append(name)
                call.activation, call.in_place = activation, same_memory
                call.slope, call.norms = found.slope, found.norms
                call.width_square = call.pre_activation_square
                if found.slope is not None:
                    square = pre_activation_square(args[0].detach(), found.module, call.rows)
                    # A neuron that its normalisation multiplies by zero has no curvature; its step only stays finite.
                    slopes = found.slope.square().to(square).clamp_min(torch.finfo(square.dtype).eps)
                    call.width_square = square / slopes
                receive = self._width_receiver(call)
            tapped = tap(output, self._anchor, receive, found.inputs, args[0].detach())
            self._activated.add(tapped, call)
            return tapped

        return hook

    def _gated_hook(self, gate: Gate, reader: str) -> Callable[..., Any]:
        def hook(module: Affine, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            first, second = self._rows.get(gate.gate), self._rows.get(gate.up)
            if first is None or second is None or gate.gate in self._no_gates or not torch.is_grad_enabled():
                return None
            if reader == gate.readers[-1]:
                del self._rows[gate.gate], self._rows[gate.up]  # checkpointing may free them
            z, factor = first.row(), second.row()
            call, partner, receive = first.call, second.call, None
            if call is not None and partner is not None:
                activation = self._gate_activation(gate, first, second, args[0])
                if isinstance(activation, str):
                    self._no_gates.add(gate.gate)
                    call.no_curvature = activation
                    return None
                call.activation, call.partner = activation, partner
                call.width_square = torch.cat([call.pre_activation_square, partner.pre_activation_square])
                call.consumers[reader] = column_size(module)
                receive = self._gated_receiver(gate, call)
            tapped = tap(args[0], self._anchor, receive, first.inputs, z, factor)
            return (tapped, *args[1:])

        return hook

    def _gate_activation(self, gate: Gate, first: _Output, second: _Output, hidden: Tensor) -> Activation | str:
        """The activation of a described gate, or why what a layer reads is not what the gate answers."""
        z, factor = first.row(), second.row()
        activation = self._activation(gate.activation, z)
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
        if not bool((actual - expected).norm() <= _tolerance(actual.dtype) * expected.norm()):
            return f"what reads it is not the product of its activation and {gate.up}"
        return activation

    def _activation(self, module: nn.Module, z: Tensor) -> Activation | str:
        """What a module does to single elements, or why neurons with these pre-activations have no curvature."""
        if module not in self._activations:
            try:
                self._activations[module] = activation_of(module)
            except ValueError as error:
                self._activations[module] = str(error)
        found = self._activations[module]
        if isinstance(found, Activation) and math.isfinite(found.reach) and float(z.abs().max()) > found.reach:
            return f"the slope of {found.name} jumps at ±{found.reach:.3g}, which is reached"
        return found

    def _note_reader(self, name: str, module: Affine, tensor: Tensor) -> None:
        producer = self._outputs.get(tensor)
        if producer is not None and producer.call is not None:
            producer.call.other_readers.append(name)
        activated = self._activated.get(tensor)
        if activated is not None:
            activated.consumers[name] = column_size(module)
            if group_count(module) > 1:
                activated.no_curvature = (
                    f"the output of its activation is read by {name}, a convolution with groups, which copies would "
                    "not fit into"
                )

    def _why_not(self, module: Affine, inputs: Tensor) -> str | None:
        if not torch.is_grad_enabled():
            return (
                "runs without gradients (under `torch.no_grad`, or reentrant activation checkpointing, which "
                '`gradient_checkpointing_kwargs={"use_reentrant": False}` avoids)'
            )
        if inputs.numel() == 0:
            return "gets no tokens"
        shaped = inputs.dim() == 4 if isinstance(module, nn.Conv2d) else inputs.dim() > 1
        if not shaped or inputs.shape[0] % self._samples:
            return (
                f"its input of shape {tuple(inputs.shape)} is not grouped by the {self._samples} samples of the batch"
            )
        return None

    def _depth_receiver(self, call: Call) -> Callable[..., Any]:
        def receive(gradient: Tensor, inputs: Tensor) -> None:
            if call.chain_rule is not None:
                dtype = call.chain_rule.dtype
                actual = neurons_at(gradient, call.module, call.few()).to(dtype)
                error = (actual - call.chain_rule).norm()
                # What is not finite says nothing here; it is found when the layer is solved.
                if bool(error > _tolerance(gradient.dtype) * actual.norm()):
                    call.other_readers.append("an operation that is not a module")
                call.chain_rule = None
            self.receive(call, "depth", inputs, gradient, None, None)

        return receive

    def _width_receiver(self, call: Call) -> Callable[..., Any]:
        def receive(gradient: Tensor, inputs: Tensor, pre_activation: Tensor) -> None:
            if call.activation is not None:
                slope, few = self._few(call, pre_activation, gradient)
                call.chain_rule = call.activation.first(slope) * few
                if call.slope is not None:
                    call.chain_rule *= call.slope.to(few.dtype)
            self.receive(call, "width", inputs, gradient, pre_activation, None)

        return receive

    def _gated_receiver(self, gate: Gate, call: Call) -> Callable[..., Any]:
        def receive(gradient: Tensor, inputs: Tensor, pre_activation: Tensor, factor: Tensor) -> None:
            if call.activation is not None and call.partner is not None:
                z, few, u = self._few(call, pre_activation, gradient, factor)
                call.chain_rule = call.activation.first(z) * few * u
                call.partner.chain_rule = gate.activation.forward(z) * few
            self.receive(call, "width", inputs, gradient, pre_activation, factor)

        return receive

    @staticmethod
    def _few(call: Call, *values: Tensor) -> list[Tensor]:
        parts = [neurons_at(value, call.module, call.few()) for value in values]
        return [part.to(torch.float64 if part.dtype == torch.float64 else torch.float32) for part in parts]


def _tolerance(dtype: torch.dtype) -> float:
    return _CHECK_TOLERANCE.get(dtype, _HALF_TOLERANCE)
