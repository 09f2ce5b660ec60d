"""First and second derivatives of common element-wise activations, in closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


# A rectifier has no second derivative. The splitting matrix of a ReLU neuron is taken from softplus(βz)/β instead, as
# arXiv 1910.02366 proposes; β = 4 keeps the kernel about as wide as a GELU's.
RELU_SURROGATE_BETA = 4.0
QUICK_GELU_SLOPE = 1.702


@dataclass(frozen=True)
class Activation:
    """
    An element-wise activation `φ`.

    Attributes:
        name (`str`): Name of the formula. Ends in `"(softplus surrogate)"` if `second` is not the exact derivative.
        first (`Callable`): The derivative `φ'` of a tensor of pre-activations.
        second (`Callable`): The second derivative `φ''`, or that of the named surrogate.
        reach (`float`, *optional*, defaults to infinity): Up to this size of the pre-activation `φ'` is continuous.
            `φ''` says nothing about neurons whose pre-activations lie beyond.
    """

    name: str
    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]
    reach: float = math.inf


def _gelu_first(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + torch.erf(z * math.sqrt(0.5))) + z * density


def _gelu_second(z: Tensor) -> Tensor:
    square = z * z
    return torch.exp(-0.5 * square).mul_(2 - square).mul_(1 / math.sqrt(2 * math.pi))


def _tanh_gelu_parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # φ = z (1 + t) / 2 with t = tanh(u) and u = k (z + a z³); returns t, t', t''.
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(scale * (z + cubic * z**3))
    inner_first = scale * (1 + 3 * cubic * z * z)
    inner_second = 6 * scale * cubic * z
    return t, (1 - t * t) * inner_first, (1 - t * t) * (inner_second - 2 * t * inner_first * inner_first)


def _tanh_gelu_first(z: Tensor) -> Tensor:
    t, t_first, _ = _tanh_gelu_parts(z)
    return 0.5 * (1 + t) + 0.5 * z * t_first


def _tanh_gelu_second(z: Tensor) -> Tensor:
    _, t_first, t_second = _tanh_gelu_parts(z)
    return t_first + 0.5 * z * t_second


def _sigmoid_gate(slope: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Derivatives of `z σ(slope · z)`: SiLU for slope 1, quick-GELU for slope 1.702."""

    def first(z: Tensor) -> Tensor:
        s = torch.sigmoid(slope * z)
        return s + slope * z * s * (1 - s)

    def second(z: Tensor) -> Tensor:
        s = torch.sigmoid(slope * z)
        return slope * s * (1 - s) * (2 + slope * z * (1 - 2 * s))

    return first, second


def _tanh_first(z: Tensor) -> Tensor:
    return 1 - torch.tanh(z) ** 2


def _tanh_second(z: Tensor) -> Tensor:
    t = torch.tanh(z)
    return -2 * t * (1 - t * t)


def _mish_parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # φ = z t with t = tanh(softplus(z)); returns t, t', t''.
    t, s = torch.tanh(torch.nn.functional.softplus(z)), torch.sigmoid(z)
    t_first = (1 - t * t) * s
    return t, t_first, t_first * (1 - s - 2 * t * s)


def _mish_first(z: Tensor) -> Tensor:
    t, t_first, _ = _mish_parts(z)
    return t + z * t_first


def _mish_second(z: Tensor) -> Tensor:
    _, t_first, t_second = _mish_parts(z)
    return 2 * t_first + z * t_second


def _relu_first(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


def _relu_surrogate_second(z: Tensor) -> Tensor:
    s = torch.sigmoid(RELU_SURROGATE_BETA * z)
    return RELU_SURROGATE_BETA * s * (1 - s)


GELU = Activation("gelu", _gelu_first, _gelu_second)
TANH_GELU = Activation("gelu_tanh", _tanh_gelu_first, _tanh_gelu_second)
SILU = Activation("silu", *_sigmoid_gate(1.0))
QUICK_GELU = Activation("quick_gelu", *_sigmoid_gate(QUICK_GELU_SLOPE))
MISH = Activation("mish", _mish_first, _mish_second)
TANH = Activation("tanh", _tanh_first, _tanh_second)
RELU = Activation("relu (softplus surrogate)", _relu_first, _relu_surrogate_second)

ACTIVATIONS = {
    "gelu": GELU,
    "gelu_tanh": TANH_GELU,
    "silu": SILU,
    "quick_gelu": QUICK_GELU,
    "mish": MISH,
    "tanh": TANH,
    "relu": RELU,
}
