"""The wrappers of a model, of DDP and `torch.compile`: what is inside, and how they follow other parameters."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


# Constructor arguments of DDP that it keeps as attributes of the same name.
_KEPT = (
    "device_ids",
    "output_device",
    "dim",
    "process_group",
    "broadcast_buffers",
    "forward_sync_buffers",
    "find_unused_parameters",
    "gradient_as_bucket_view",
    "static_graph",
    "skip_all_reduce_unused_params",
    "batched_grad_copy",
)
# What `nn.Module.__init__` resets.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def unwrapping(model: nn.Module) -> Iterator[nn.Module]:
    """The wrappers of a model, outermost first, and then the model itself."""
    while isinstance(model, (torch._dynamo.OptimizedModule, DistributedDataParallel)):
        yield model
        model = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
    yield model


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of its wrappers."""
    *_, inner = unwrapping(model)
    return inner


def find_ddp(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP wrapper among the wrappers of a model."""
    return next((part for part in unwrapping(model) if isinstance(part, DistributedDataParallel)), None)


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` has wrapped a model, or one of its wrappers."""
    *wrappers, inner = unwrapping(model)
    wrapped = any(isinstance(wrapper, torch._dynamo.OptimizedModule) for wrapper in wrappers)
    return wrapped or inner._compiled_call_impl is not None


def follows(wrapper: DistributedDataParallel) -> bool:
    """Whether a DDP wrapper reduces the gradients of exactly the parameters that its module has."""
    known, ignored = wrapper._module_parameters, wrapper.parameters_to_ignore
    present = [parameter for name, parameter in wrapper.module.named_parameters() if name not in ignored]
    return len(known) == len(present) and all(a is b for a, b in zip(known, present, strict=True))


def ddp_arguments(wrapper: DistributedDataParallel) -> dict[str, Any]:
    """
    The arguments that a DDP wrapper was constructed with.

    Raises:
        ValueError: If some cannot be told from it.
    """
    if wrapper._delay_all_reduce_params or wrapper.mixed_precision is not None or wrapper._use_python_reducer:
        raise ValueError(
            "DDP with `delay_all_reduce_named_params`, its own `mixed_precision` or the Python reducer cannot follow "
            "a growth. Leave these out; mixed precision of Accelerate (`--mixed_precision bf16`) works."
        )
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    names = [name for name in _KEPT if name in known]
    if "forward_sync_buffers" in names:
        names.remove("broadcast_buffers")  # its deprecated twin
    capacity = None if wrapper.bucket_bytes_cap_default else wrapper.bucket_bytes_cap / 2**20
    return {name: getattr(wrapper, name) for name in names} | {"bucket_cap_mb": capacity}


def rebuild_ddp_(wrapper: DistributedDataParallel) -> None:
    """
    Make a DDP wrapper follow the present parameters of its module. All processes have to call this.

    A growth replaces parameters, but the reducer keeps those that it was made for: gradients of the others would no
    longer be averaged, and the replicas would drift apart without an error. The wrapper is constructed anew in place,
    because training loops hold it. Its arguments, hooks, communication hooks and mode are kept.

    Raises:
        ValueError: If the wrapper was made with arguments that cannot be told from it.
    """
    arguments = ddp_arguments(wrapper)
    hooks = {name: wrapper.__dict__[name] for name in _HOOKS}
    communication, training = list(wrapper._comm_hooks), wrapper.training
    DistributedDataParallel.__init__(wrapper, wrapper.module, **arguments)
    wrapper.__dict__.update(hooks)
    wrapper.training = training
    for hook, state in communication:
        wrapper.register_comm_hook(state, hook)


def renew_wrapper_(model: nn.Module) -> None:
    """Renew the wrappers of a model whose parameters are no longer those that its DDP wrapper was made for."""
    wrapper = find_ddp(model)
    if wrapper is not None and not follows(wrapper):
        rebuild_ddp_(wrapper)
        if is_compiled(model):
            torch.compiler.reset()
