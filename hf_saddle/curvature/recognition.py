"""What a module does to pre-activations: its derivatives, in closed form or by autograd, or why it has none."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .activations import ACTIVATIONS, RELU, Activation


# What is asked of an activation: single points, for closed forms, and a fine grid, where kinks must show.
_LARGEST = 32.0
_GRID_STEP = 2.0**-9
# A kink nearer to zero than that is met by the pre-activations of any layer.
_SMALLEST_REACH = 8.0
# A jump of φ' by this share of its largest value (for |z| up to the smallest reach) is a kink.
_JUMP = 0.02
# Entries of one slice of derivatives by autograd, which keeps several tensors of that size.
_SLICE = 2**20


def may_be_activation(module: nn.Module) -> bool:
    """
    Whether a module could be an activation: one of a family of torch or transformers, or any that holds nothing.

    What it is, `activation_of` tells.
    """
    kind = type(module)
    if isinstance(module, nn.MultiheadAttention):
        return False
    if kind.__name__.endswith("Activation") or kind.__module__ == "torch.nn.modules.activation":
        return True
    return not any(True for part in (module.children(), module.parameters(), module.buffers()) for _ in part)


def activation_of(module: nn.Module) -> Activation:
    """
    The derivatives of an element-wise activation.

    A closed form is used where it agrees with what the module does, whatever its class is called; else the module is
    differentiated twice by autograd.

    Args:
        module (`nn.Module`): Such as `nn.GELU()`, an entry of transformers' `ACT2FN`, or one of your own.

    Returns:
        [`Activation`]: With `φ'` and `φ''`.

    Raises:
        ValueError: If neurons have no curvature behind it: it is not element-wise, has parameters of its own, is
            piecewise linear, has a kink, or cannot be differentiated twice.
    """
    name = type(module).__name__
    _check_elementwise(module)
    points = torch.cat([-_points(), _points()])
    first, second = _derivatives(module, points)
    closed = _closed_form(first, second, points)
    if closed is not None and closed is not RELU:
        return closed
    grid = torch.arange(-_LARGEST, _LARGEST, _GRID_STEP, dtype=torch.float64)
    first, second = _derivatives(module, grid)
    if not bool(second.any()):
        raise ValueError(f"{name} is piecewise linear, so that neurons behind it have no curvature")
    # By the trapezoidal rule: what φ'' does not account for is a jump of φ'.
    jump = (first.diff() - _GRID_STEP * 0.5 * (second[1:] + second[:-1])).abs()
    scale = first[grid.abs() <= _SMALLEST_REACH].abs().max()
    kinks = grid[:-1][~(jump <= _JUMP * scale)]
    reach = float(kinks.abs().min()) if len(kinks) else math.inf
    if reach < _SMALLEST_REACH:
        at = float(kinks[kinks.abs().argmin()])
        raise ValueError(f"the slope of {name} jumps at {at:.2g}, where its second derivative says nothing")
    return Activation(
        name,
        lambda z: _in_slices(lambda part: _derivatives(module, part)[0], z),
        lambda z: _in_slices(lambda part: _derivatives(module, part)[1], z),
        reach,
    )


class Recognised:
    """The activations of a model, each of them looked at once."""

    def __init__(self) -> None:
        self._found: dict[nn.Module, Activation | str] = {}

    def activation(self, module: nn.Module, z: Tensor) -> Activation | str:
        """What a module does to single elements, or why neurons with these pre-activations have no curvature."""
        if module not in self._found:
            try:
                self._found[module] = activation_of(module)
            except ValueError as error:
                self._found[module] = str(error)
        found = self._found[module]
        if isinstance(found, Activation) and math.isfinite(found.reach) and float(z.abs().max()) > found.reach:
            return f"the slope of {found.name} jumps at ±{found.reach:.3g}, which is reached"
        return found


def curvature_at_zero(activation: nn.Module | str) -> float:
    """
    The second derivative at zero of the activation of new depth units, which their predicted gain is proportional to.

    Args:
        activation (`nn.Module` or `str`): An activation, or a name in `ACTIVATIONS`.

    Raises:
        ValueError: If units with this activation do not change the loss as predicted: it is not element-wise, has
            parameters of its own, is not zero at zero, or has no second derivative there or one that is zero.
    """
    if isinstance(activation, str):
        name, bend = activation, float(ACTIVATIONS[activation].second(torch.zeros((), dtype=torch.float64)))
    else:
        name, bend = type(activation).__name__, _bend(activation)
    if bend == 0:
        raise ValueError(f"depth units with {name} have no curvature at zero; use an activation such as 'gelu'")
    return bend


def _bend(module: nn.Module) -> float:
    name = type(module).__name__
    _check_elementwise(module)
    points = torch.cat([-_points(), _points()])
    if _closed_form(*_derivatives(module, points), points) is RELU:
        return float(RELU.second(torch.zeros((), dtype=torch.float64)))
    around = torch.tensor([-1e-4, 0.0, 1e-4], dtype=torch.float64)
    at_zero = float(_values(module, around)[1])
    if at_zero != 0:
        raise ValueError(
            f"depth units with {name} answer {at_zero:.2g} at zero, so that a gain shifts the pre-activation, which "
            "is no part of the predicted gain; use an activation such as 'gelu'"
        )
    first, second = _derivatives(module, around)
    for derivative in (first, second):
        if not bool((derivative - derivative[1]).abs().max() <= _JUMP * derivative.abs().max().clamp_min(1.0)):
            raise ValueError(f"the derivatives of {name} jump at zero, where depth units begin")
    return float(second[1])


def _points() -> Tensor:
    """Positive points, dense where activations bend."""
    return torch.logspace(-2, math.log10(_LARGEST), 40, dtype=torch.float64)


def _closed_form(first: Tensor, second: Tensor, points: Tensor) -> Activation | None:
    """The known activation with these derivatives at these points."""
    for known in ACTIVATIONS.values():
        exact = torch.zeros_like(second) if known is RELU else known.second(points)
        # transformers rounds constants of one GELU to ten digits.
        near = functools.partial(torch.allclose, rtol=0, atol=1e-8)
        if near(first, known.first(points)) and near(second, exact):
            return known
    return None


def _check_elementwise(module: nn.Module) -> None:
    name = type(module).__name__
    if any(True for _ in module.parameters()):
        raise ValueError(f"{name} has parameters of its own, which its derivatives would depend on")
    points = torch.cat([-_points(), _points()])
    try:
        line = _values(module, points)
        block = _values(module, points.flip(0).reshape(2, 4, -1)).flatten().flip(0)
        fits = line.shape == block.shape == points.shape and torch.allclose(line, block, rtol=1e-9, atol=1e-12)
    except Exception:
        # A module that takes no tensor of any shape is none of single elements.
        fits = False
    if not fits:
        raise ValueError(f"{name} is not element-wise")


def _values(module: nn.Module, z: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        values: Tensor = module.forward(z.clone())
    return values


def _derivatives(module: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """`φ'` and `φ''` by autograd, past the hooks of the module and of an activation checkpointing around it."""
    unseen = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(z.device.type, enabled=False), unseen:
        points = z.detach().clone().requires_grad_()
        # A copy, as the module may write into it.
        value = module.forward(points.clone())
        try:
            (first,) = torch.autograd.grad(value.sum(), points, create_graph=True)
            if not first.requires_grad:
                return first, torch.zeros_like(first)
            (second,) = torch.autograd.grad(first.sum(), points, allow_unused=True)
        except RuntimeError as error:
            raise ValueError(f"{type(module).__name__} cannot be differentiated twice ({error})") from error
        return first.detach(), torch.zeros_like(z) if second is None else second


def _in_slices(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    if z.numel() <= _SLICE:
        return function(z)
    return torch.cat([function(part) for part in torch.split(z.flatten(), _SLICE)]).view_as(z)
