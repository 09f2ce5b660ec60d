"""Forward hooks that hand over inputs and output gradients of affine layers while one backward pass runs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..recognition import Recognised, may_be_activation
from .calls import Call, Output, why_no_tokens
from .described import Described, Gate
from .gates import Gates
from .inputs import Affine, column_size, group_count, neuron_count
from .moments import pre_activation_square
from .padding import NO_MASKS, POSITIONS_FOR_SCALE, Masks, Positions, rows_for_scale
from .receivers import Receiver, depth_receiver, width_receiver
from .shown import LOSS_SCALE
from .taps import Known, tap


class Hooks:
    """
    Context manager that watches affine layers of a model.

    Args:
        model (`nn.Module`): The model; it is used as it is (eval mode is the caller's business).
        linears (`dict[str, nn.Module]`): The layers to be analysed, by name.
        receive (`Callable`): Called during the backward pass with what each use of a layer has [`Shown`].
        width (`bool`): Whether activations and consumers are looked for.
        described ([`Described`], *optional*): What is known of the model.
        positions (`Callable`, *optional*): Maps a layer to how many positions of a sample scales are taken of.

    Attributes:
        calls (`dict[str, list[Call]]`): The uses of each layer in the forward pass that ran last.
        skipped (`dict[str, str]`): Layers of which a use cannot be analysed, with the reason.
        partial (`set[str]`): Those whose gradient has a part from that use, so that the other uses are not all of it.
    """

    def __init__(
        self,
        model: nn.Module,
        linears: dict[str, Affine],
        receive: Receiver,
        width: bool,
        described: Described | None = None,
        positions: Callable[[Affine], int] = lambda module: POSITIONS_FOR_SCALE,
    ):
        self.model, self.linears, self.receive, self.width = model, linears, receive, width
        self._wanted = positions
        self.calls: dict[str, list[Call]] = {}
        self.skipped: dict[str, str] = {}
        self.partial: set[str] = set()
        self._positions = Positions(None if described is None else described.decoder)
        gates = () if described is None or not width else described.gates
        self._recognised = Recognised()
        self._gates = Gates([gate for gate in gates if gate.gate in linears], self._recognised)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._samples, self._first, self._recording = 0, 0, False
        self._anchor = torch.zeros((), requires_grad=True)

    def __enter__(self) -> "Hooks":
        for gate in self._gates.gates:
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
        self._handles += self._positions.watch()
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
        Run the forward pass of one batch, to its mean loss, of a model on a device; `first` is the number of samples
        in earlier batches and on lower ranks, and `masks` tells which positions are no padding.
        """
        self.calls, self._samples, self._first, self._recording = {}, samples, first, True
        self._outputs, self._activated = Known(), Known()
        self._gates.clear()
        self._positions.start(masks)
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
        gated = name in self._gates
        watched = gated or name in self.linears

        def hook(module: Affine, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self._recording:
                self._note_reader(name, module, args[0])
            if not watched:
                return None
            reason = why_no_tokens(module, args[0], self._samples)
            if reason is not None:
                self.skipped.setdefault(name, reason)
                if torch.is_grad_enabled() and args[0].numel():
                    self.partial.add(name)
                return None
            inputs = args[0].detach()
            call, receive = None, None
            if self._recording:
                call = self._call(name, module, args[0], output.detach())
                self.calls.setdefault(name, []).append(call)
                receive = depth_receiver(call, self.receive)
            tapped = tap(output, self._anchor, receive, inputs)
            if self.width:
                found = Output(
                    call, module, inputs, tapped._version, tapped.shape, tapped.stride(), tapped if gated else None
                )
                self._outputs.add(tapped, found)
                if gated:
                    self._gates.note(name, found)
            return tapped

        return hook

    def _call(self, name: str, module: Affine, inputs: Tensor, output: Tensor) -> Call:
        tokens = output.numel() // neuron_count(module)
        mask = self._positions.mask(module, inputs, tokens // self._samples)
        places = (self._samples, tokens // self._samples, self._first, mask, output.device)
        rows = rows_for_scale(*places, self._wanted(module))
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

    def _read(self, args: tuple[Any, ...]) -> Output | None:
        """What a layer answered that a module reads, with the same axes; of other axes the layer is told."""
        found: Output | None = self._outputs.get(args[0]) if args else None
        if found is None or found.is_whole(args[0]):
            return found
        if found.call is not None:
            found.call.reshaped = True
        return None

    def _norm_hook(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.BatchNorm2d, args: tuple[Any, ...], output: Tensor) -> None:
            found = self._read(args)
            if found is None:
                return
            if module.training or module.running_var is None or module.running_mean is None:
                if found.call is not None:
                    found.call.no_curvature = f"{name} normalises its output by the statistics of the batch"
                return
            slope = (module.running_var + module.eps).rsqrt()
            norms = 0
            if module.weight is not None:
                slope, norms = slope * module.weight.detach(), 2
            behind = replace(
                found,
                version=output._version,
                shape=output.shape,
                stride=output.stride(),
                value=None,
                slope=slope,
                norms=norms,
            )
            self._outputs.add(output, behind)

        return hook

    def _activation_hook(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            found = self._read(args) if torch.is_grad_enabled() else None
            if found is None:
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
            activation = self._recognised.activation(module, args[0].detach())
            if isinstance(activation, str):
                if call is not None:
                    call.no_curvature = f"its output is read by an activation without curvature: {activation}"
                return None
            receive = None
            if call is not None:
                call.connect(name, activation, args[0].detach(), found, same_memory)
                receive = width_receiver(call, self.receive)
            tapped = tap(output, self._anchor, receive, found.inputs, args[0].detach())
            self._activated.add(tapped, call)
            return tapped

        return hook

    def _gated_hook(self, gate: Gate, reader: str) -> Callable[..., Any]:
        def hook(module: Affine, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            answers = self._gates.take(gate, reader)
            if answers is None:
                return None
            first, second = answers
            receive = None
            if first.call is not None and second.call is not None:
                if not self._gates.connect(gate, first, second, reader, module, args[0]):
                    return None
                receive = width_receiver(first.call, self.receive, gate)
            tapped = tap(args[0], self._anchor, receive, first.inputs, first.row(), second.row())
            return (tapped, *args[1:])

        return hook

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
