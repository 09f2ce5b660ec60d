"""What hangs on a parameter, and how it follows when another one takes its place."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .growable import Growable, PairedLinear


def follow_(new: nn.Parameter, old: nn.Parameter) -> nn.Parameter:
    """Let a parameter require a gradient as another one does, and have its attributes."""
    new.__dict__.update(old.__dict__)
    new.requires_grad_(old.requires_grad)
    return new


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded a model, or its parameters are distributed tensors otherwise (tensor parallelism)."""
    return isinstance(model, FSDPModule) or any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(value: Tensor) -> Tensor:
    """A tensor without its graph; of one that is spread over processes, which all have to call this, all of it."""
    shard: Any = value.detach()
    return shard.full_tensor() if isinstance(shard, DTensor) else shard


def check_replaceable(path: str, module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """
    Verify that other parameters, of other shapes, can take the place of those of a growable layer and of its branch's
    gains, or of a batch normalisation.

    Returns:
        `list[tuple[str, nn.Parameter]]`: These parameters by name, without those of the layer in the branch.

    Raises:
        ValueError: If they were pruned or reparametrised; if they have hooks, which may depend on their shape or know
            these very objects, or tensors among their attributes.
    """
    twins = {"twin_weight", "twin_bias"} if isinstance(module, PairedLinear) else set()
    statistics = set() if isinstance(module, Growable) else {"running_mean", "running_var", "num_batches_tracked"}
    parts: list[tuple[str, nn.Module, set[str], set[str], set[str]]] = [
        (path, module, {"weight", "bias"} | twins, statistics, {"skip"})
    ]
    if isinstance(module, Growable) and module.skip is not None:
        gain = {"gain"} if module.skip.kind == "gain" else set()
        parts.append((f"{path}.skip", module.skip, gain, {"target"}, {"linear", "activation"}))
    own: list[tuple[str, nn.Parameter]] = []
    for name, part, parameters, buffers, children in parts:
        extra = set(part._parameters) ^ parameters | set(part._buffers) ^ buffers | set(part._modules) - children
        if extra:
            raise ValueError(
                f"{name} has {', '.join(sorted(extra))} beside or instead of its parameters, as pruning "
                "(`nn.utils.prune`), `weight_norm`, `spectral_norm` and parametrisations leave it, and cannot change "
                "its shape. Make that permanent first (`prune.remove`, `remove_weight_norm`, "
                "`parametrize.remove_parametrizations`)."
            )
        own += [(f"{name}.{key}", value) for key, value in part._parameters.items() if value is not None]
    for name, parameter in own:
        check_unattached(name, parameter)
    return own


def check_unattached(name: str, parameter: nn.Parameter) -> None:
    """Raise a `ValueError` if a parameter has hooks, or tensors among its attributes."""
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        raise ValueError(
            f"{name} has hooks (`register_hook`, or `register_post_accumulate_grad_hook` for an optimizer in the "
            "backward pass), and a parameter of another shape is to take its place, which they would not fit. "
            "Remove them; change gradients before the optimizer's step (in a Trainer `on_pre_optimizer_step`)."
        )
    tensors = [key for key, value in vars(parameter).items() if isinstance(value, Tensor) and value.numel() > 1]
    if tensors:
        raise ValueError(
            f"{name} has the attribute `{tensors[0]}`, a tensor, which does not fit the parameter of another "
            "shape that is to take its place. Keep it elsewhere, by the name of the parameter."
        )


def take_dtypes_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the dtypes of weights of the same names: some stay in float32 in a half model."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in weights:
            tensor.data = tensor.data.to(weights[name].dtype)
