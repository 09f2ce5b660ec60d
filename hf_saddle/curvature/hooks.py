"""Forward hooks that hand over inputs and output gradients of linear layers while one backward pass runs."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .activations import Activation
from .calls import Call
from .moments import pre_activation_square
from .recognition import activation_of, may_be_activation
from .taps import Known, tap


# Gradients are taken of the summed loss times this factor (a power of two, hence exact): in fp16 those of a mean loss
# would be flushed to zero.
LOSS_SCALE = 1024.0
# Tokens on which the chain rule is checked: ∂L/∂z = ∂L/∂h φ'(z) holds only if the activation is the sole reader of z.
_TOKENS_FOR_CHECK = 64
_CHECK_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


Receiver = Callable[[Call, str, Tensor, Tensor, Tensor | None], None]


class Hooks:
    """
    Context manager that watches linear layers of a model.

    Args:
        model (`nn.Module`): The model; it is used as it is (eval mode is the caller's business).
        linears (`dict[str, nn.Linear]`): The layers to be analysed, by name.
        receive (`Callable`): Called during the backward pass with the call, `"depth"` or `"width"`, the inputs
            `(tokens, d)`, the gradient at z or φ(z) `(tokens, n)` and, for width, z `(tokens, n)`.
        width (`bool`): Whether activations and consumers are looked for.

    Attributes:
        calls (`dict[str, list[Call]]`): The uses of each layer in the forward pass that ran last.
        skipped (`dict[str, str]`): Layers that cannot be analysed, with the reason.
    """

    def __init__(self, model: nn.Module, linears: dict[str, nn.Linear], receive: Receiver, width: bool):
        self.model, self.linears, self.receive, self.width = model, linears, receive, width
        self.calls: dict[str, list[Call]] = {}
        self.skipped: dict[str, str] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._activations: dict[nn.Module, Activation | str] = {}
        self._samples, self._first = 0, 0
        self._recording = False
        self._anchor = torch.zeros((), requires_grad=True)

    def __enter__(self) -> "Hooks":
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear):
                self._handles.append(module.register_forward_hook(self._linear_hook(name)))
            elif self.width and may_be_activation(module):
                self._handles.append(module.register_forward_hook(self._activation_hook(name)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forward(
        self, compute_loss: Callable[[], Tensor], samples: int, device: torch.device, first: int = 0
    ) -> Tensor:
        """
        Run the forward pass of one batch.

        Args:
            compute_loss (`Callable`): Returns the mean loss of the batch.
            samples (`int`): Number of samples of the batch.
            device (`torch.device`): Where the model is.
            first (`int`, *optional*, defaults to 0): Number of samples in earlier batches and on lower ranks.
        """
        self.calls, self._samples, self._first, self._recording = {}, samples, first, True
        self._outputs, self._activated = Known(), Known()
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
        watched = name in self.linears

        def hook(module: nn.Linear, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self._recording:
                self._note_reader(name, module, args[0])
            if not watched:
                return None
            reason = self._why_not(args[0], output)
            if reason is not None:
                self.skipped.setdefault(name, reason)
                return None
            inputs = args[0].detach()
            call, receive = None, None
            if self._recording:
                tokens = output.numel() // output.shape[-1]
                square = pre_activation_square(output.detach(), self._samples, self._first)
                call = Call(name, self._samples, self._first, tokens, square)
                self.calls.setdefault(name, []).append(call)
                receive = self._depth_receiver(call)
            tapped = tap(output, self._anchor, receive, inputs)
            if self.width:
                self._outputs.add(tapped, (call, inputs, tapped._version))
            return tapped

        return hook

    def _activation_hook(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            known = self._outputs.get(args[0]) if args else None
            if known is None or not torch.is_grad_enabled():
                return None
            call, inputs, version = known
            same_memory = isinstance(output, Tensor) and output.data_ptr() == args[0].data_ptr()
            if same_memory and args[0]._version == version:
                # It hands on what it got, such as dropout in eval mode.
                return None
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
                receive = self._width_receiver(call)
            tapped = tap(output, self._anchor, receive, inputs, args[0].detach())
            self._activated.add(tapped, call)
            return tapped

        return hook

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

    def _note_reader(self, name: str, module: nn.Linear, tensor: Tensor) -> None:
        producer = self._outputs.get(tensor)
        if producer is not None and producer[0] is not None:
            producer[0].other_readers.append(name)
        activated = self._activated.get(tensor)
        if activated is not None:
            activated.consumers[name] = module.out_features

    def _why_not(self, inputs: Tensor, output: Tensor) -> str | None:
        if not torch.is_grad_enabled():
            return (
                "runs without gradients (under `torch.no_grad`, or reentrant activation checkpointing, which "
                '`gradient_checkpointing_kwargs={"use_reentrant": False}` avoids)'
            )
        if inputs.numel() == 0:
            return "gets no tokens"
        if inputs.dim() < 2 or inputs.shape[0] % self._samples:
            return (
                f"its input of shape {tuple(inputs.shape)} is not grouped by the {self._samples} samples of the batch"
            )
        return None

    def _depth_receiver(self, call: Call) -> Callable[..., Any]:
        def receive(gradient: Tensor, inputs: Tensor) -> None:
            gradient = gradient.reshape(-1, gradient.shape[-1])
            if call.chain_rule is not None:
                dtype = call.chain_rule.dtype
                actual = gradient[:_TOKENS_FOR_CHECK].to(dtype)
                error = (actual - call.chain_rule).norm()
                # Half-precision tensors carry their own rounding, about 2⁻⁸ of each value for bfloat16.
                tolerance = 0.1 if gradient.dtype in (torch.float16, torch.bfloat16) else _CHECK_TOLERANCE[dtype]
                # What is not finite says nothing here; it is found when the layer is solved.
                if bool(error > tolerance * actual.norm()):
                    call.other_readers.append("an operation that is not a module")
                call.chain_rule = None
            self.receive(call, "depth", inputs.reshape(-1, inputs.shape[-1]), gradient, None)

        return receive

    def _width_receiver(self, call: Call) -> Callable[..., Any]:
        def receive(gradient: Tensor, inputs: Tensor, pre_activation: Tensor) -> None:
            gradient = gradient.reshape(-1, gradient.shape[-1])
            pre_activation = pre_activation.reshape(-1, pre_activation.shape[-1])
            if call.activation is not None:
                few = pre_activation[:_TOKENS_FOR_CHECK]
                few = few.to(torch.float64 if few.dtype == torch.float64 else torch.float32)
                call.chain_rule = call.activation.first(few) * gradient[:_TOKENS_FOR_CHECK].to(few.dtype)
            self.receive(call, "width", inputs.reshape(-1, inputs.shape[-1]), gradient, pre_activation)

        return receive
