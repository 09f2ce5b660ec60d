"""Growable modules: a linear whose neurons may have skip branches (growable linears too), and the MLP of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_saddle import SKIP_UNITS


class GrowableLinear(nn.Linear):
    """
    An `nn.Linear` whose output neurons may be fed by a *skip branch* on the layer's own input.

    `z = W x + b + sum_j r_j(x) e_target(j)`, where unit `j` of the branch responds with `r_j` (see [`SkipBranch`]).
    Without a branch it has the parameters, names and outputs of `nn.Linear`.

    Args:
        in_features (`int`): Size `d` of the input.
        out_features (`int`): Number `n` of neurons.
        bias (`bool`, *optional*, defaults to `True`): Whether the neurons have a bias.
        skip_sizes (`Sequence[int]`, *optional*): Widths of the nested branches, outermost first.
        skip_unit (`str`, *optional*, defaults to `"gain"`): Kind of unit of the branches, one of `SKIP_UNITS`.
        activation (`str`, *optional*, defaults to `"gelu"`):
            Activation of the branch units, a name in transformers' `ACT2FN`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        skip_sizes: Sequence[int] = (),
        skip_unit: str = "gain",
        activation: str = "gelu",
    ):
        super().__init__(in_features, out_features, bias=bias)
        self.skip = SkipBranch(in_features, out_features, skip_sizes, skip_unit, activation) if skip_sizes else None

    @property
    def skip_sizes(self) -> list[int]:
        """Widths of the nested branches, outermost first; the length is the depth that was added."""
        if self.skip is None:
            return []
        nested = growable_in(self.skip.linear)
        return [self.skip.target.numel(), *([] if nested is None else nested.skip_sizes)]

    def project(self, x: Tensor) -> Tensor:
        """The affine part `W x + b`, shape `(..., n)`."""
        return nn.functional.linear(x, self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        z = self.project(x)
        if self.skip is None:
            return z
        response: Tensor = self.skip(x).to(z.dtype)
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
            # Optimizers of graphs take a scatter that meets every neuron for an assignment: a product cannot be lost.
            neurons = torch.arange(self.out_features, device=z.device)
            return z + response @ (self.skip.target.unsqueeze(-1) == neurons).to(z.dtype)
        # `z` and the zeros are fresh, so they may be added to in place, which saves a copy.
        if self.skip.shared_targets:
            # Units of one neuron are summed before they meet z, so that opposed units cancel without a rounding error.
            return z + torch.zeros_like(z).index_add_(-1, self.skip.target, response)
        return z.index_add_(-1, self.skip.target, response)


class PairedLinear(GrowableLinear):
    """
    A `GrowableLinear` whose rows are stored as the sum of two: `W = W⁺ + W⁻` (`weight` and `twin_weight`).

    This is the residual pair of arXiv 2402.12418, Eq. 3. The two rows of a pair enter the network only through their
    sum, so they are added before the product, which halves its cost.
    """

    def __init__(self, in_features: int, out_features: int, **kwargs: Any):
        super().__init__(in_features, out_features, **kwargs)
        self.twin_weight = nn.Parameter(torch.empty_like(self.weight).copy_(-self.weight.detach()))
        self.twin_bias = nn.Parameter(torch.empty_like(self.bias).copy_(-self.bias.detach()))

    def project(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.twin_weight, self.bias + self.twin_bias)


class SkipBranch(nn.Module):
    """
    Units fed by the input of a linear layer, each adding its response to the pre-activation of one of its neurons.

    With the unit's pre-activation `s_j = p_j · x + b_j` and the activation `φ`, a unit of kind

    - `"gain"` responds with `a_j φ(s_j)`, where the gain `a_j` is trained,
    - `"residual_pair"` responds with `s_j + φ(s_j)`, where `p_j` is stored as the sum of two rows (arXiv 2402.12418,
      Eq. 3),
    - `"residual"` responds with `s_j + φ(s_j)` of a single row: what merged pairs become.

    Args:
        in_features (`int`): Size of the input, that of the layer the branch belongs to.
        out_features (`int`): Number of neurons of that layer; targets are below it.
        sizes (`Sequence[int]`): Number of units, then the widths of the branches nested in `linear`.
        kind (`str`): Kind of unit, one of `SKIP_UNITS`.
        activation (`str`): The activation `φ`, a name in transformers' `ACT2FN`.
    """

    def __init__(self, in_features: int, out_features: int, sizes: Sequence[int], kind: str, activation: str):
        super().__init__()
        if kind not in SKIP_UNITS:
            raise ValueError(f"`skip_unit` must be one of {SKIP_UNITS}, got {kind!r}.")
        rows = PairedLinear if kind == "residual_pair" else GrowableLinear
        self.kind = kind
        self.neurons = out_features
        self.linear = rows(in_features, sizes[0], skip_sizes=sizes[1:], skip_unit=kind, activation=activation)
        self.activation = ACT2FN[activation]
        self.gain = nn.Parameter(torch.zeros(sizes[0])) if kind == "gain" else None
        self.target: Tensor
        self.register_buffer("target", torch.arange(sizes[0]) % out_features)
        self.shared_targets = sizes[0] > out_features

    def forward(self, x: Tensor) -> Tensor:
        """Responses of the units, shape `(..., units)`, for inputs of shape `(..., in_features)`."""
        pre_activation: Tensor = self.linear(x)
        response: Tensor = self.activation(pre_activation)
        return pre_activation + response if self.gain is None else self.gain * response

    def check_targets_(self, name: str) -> None:
        """
        Verify `target` and note whether neurons are targeted more than once. To be called whenever `target` changes.

        Raises:
            ValueError: If a target is not a neuron of the layer. `name` is the name of the buffer in the message.
        """
        check_targets(name, self.target, self.neurons)
        self.shared_targets = torch.unique(self.target).numel() < self.target.numel()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        name = f"{prefix}target"
        if name in state_dict:
            check_targets(name, state_dict[name], self.neurons)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.target.is_meta:
            self.check_targets_(name)


def check_targets(name: str, target: Tensor, neurons: int) -> None:
    """Raise a `ValueError` if a target is not a neuron of the layer; `name` is how the message calls the tensor."""
    if target.dtype != torch.int64 or target.numel() == 0 or int(target.min()) < 0 or int(target.max()) >= neurons:
        found = f"{target.dtype} in [{target.min()}, {target.max()}]" if target.numel() else "none"
        raise ValueError(
            f"`{name}` must hold neurons in [0, {neurons}) as int64, got {found}. The file is damaged or belongs to "
            "another model."
        )


def growable_in(module: nn.Module) -> GrowableLinear | None:
    """The outermost growable linear in a module: itself, or the one that it wraps (as the adapters of PEFT do)."""
    return next((found for found in module.modules() if isinstance(found, GrowableLinear)), None)


def linear_at(path: str, module: nn.Module) -> GrowableLinear:
    """The growable linear in a module that should be one, or wrap one."""
    linear = growable_in(module)
    if linear is None:
        raise ValueError(
            f"{path} is a {type(module).__name__}, which has taken the place of a growable linear, as quantisers do. "
            "Such a model computes and saves, but has no shapes and does not grow: use the model as it was before."
        )
    return linear


class GrowableMLP(nn.Module):
    """
    `fc2(φ(fc1(x)))` with growable linears; its width is `fc1.out_features`.

    Args:
        hidden_size (`int`): Size of the input and the output.
        intermediate_size (`int`): Number of hidden neurons.
        hidden_act (`str`): Name of the activation `φ` in transformers' `ACT2FN`, also used by the branches.
        skip_sizes (`dict[str, list[int]]`): Widths of the branches of `mlp.fc1` and `mlp.fc2`, outermost first.
        skip_unit (`str`): Kind of unit of the branches.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str,
        skip_sizes: dict[str, list[int]],
        skip_unit: str,
    ):
        super().__init__()
        sizes = [skip_sizes.get(linear, ()) for linear in ("mlp.fc1", "mlp.fc2")]
        self.activation_fn = ACT2FN[hidden_act]
        self.fc1 = GrowableLinear(hidden_size, intermediate_size, True, sizes[0], skip_unit, hidden_act)
        self.fc2 = GrowableLinear(intermediate_size, hidden_size, True, sizes[1], skip_unit, hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        answer: Tensor = self.fc2(self.activation_fn(self.fc1(hidden_states)))
        return answer
