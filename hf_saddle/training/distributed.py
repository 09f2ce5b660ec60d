"""Several processes train one model: one decision for all, checked by hashes, and a DDP wrapper that follows."""

import hashlib
import inspect
import json
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..curvature.ranks import Ranks, Result
from ..growth import GrowthPlan


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


class Replicas(Ranks):
    """
    The processes that hold a copy of one model each; a no-op for a single process.

    Args:
        group (`torch.distributed.ProcessGroup`, *optional*): The processes; `None` is a single one.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None):
        super().__init__(group is not None, group)

    @classmethod
    def of(cls, model: nn.Module) -> "Replicas":
        """The processes that a possibly wrapped model is trained by."""
        wrapper = find_ddp(model)
        return cls(None if wrapper is None else wrapper.process_group)

    def from_first(self, value: Result) -> Result:
        """The value of the first process."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=dist.get_global_rank(self.group, 0), group=self.group)
        return values[0]

    def mean(self, value: float, weight: float) -> float:
        """The mean over the processes, weighted."""
        pairs = self.gather((value * weight, weight))
        return sum(total for total, _ in pairs) / sum(share for _, share in pairs)

    def agree_on(self, plan: GrowthPlan) -> GrowthPlan:
        """
        The plan of the first process, on all of them.

        Raises:
            RuntimeError: If a process received something else.
        """
        if self.size == 1:
            return plan
        agreed = GrowthPlan.from_json(self.from_first(plan.to_json()))
        self.check_equal("the growth plan", agreed.digest())
        return agreed

    def check_equal(self, what: str, value: str) -> None:
        """
        Verify that all processes have the same value.

        Raises:
            RuntimeError: If they do not.
        """
        values = self.gather(value)
        if len(set(values)) > 1:
            others = [rank for rank, other in enumerate(values) if other != values[0]]
            raise RuntimeError(
                f"Ranks {others} differ from rank 0 in {what}: the replicas have drifted apart, and training on would "
                "be wrong. Resume from the last checkpoint, and see that all ranks run the same code and versions."
            )


def fingerprint(model: nn.Module, optimizer: Optimizer | None = None) -> str:
    """
    A hash of a model's parameters, and of its optimizer's state: names, shapes and sums in float64.

    Replicas that differ in a single bit have different sums almost surely, at a fraction of the cost of hashing all.
    """
    named = [(name, tensor) for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)]
    if optimizer is not None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            state = optimizer.state.get(parameter, {})
            named += [(f"{index}.{name}", value) for name, value in state.items() if isinstance(value, torch.Tensor)]
    head = json.dumps([(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in named])
    digest = hashlib.sha256(head.encode())
    if named:
        sums = torch.stack([tensor.detach().sum(dtype=torch.float64) for _, tensor in named])
        digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of the wrappers of `torch.compile` and DDP."""
    while True:
        if isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, DistributedDataParallel):
            model = model.module
        else:
            return model


def find_ddp(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP wrapper among the wrappers of a model."""
    while isinstance(model, torch._dynamo.OptimizedModule):
        model = model._orig_mod
    return model if isinstance(model, DistributedDataParallel) else None


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` has wrapped a model, or one of its wrappers."""
    while not isinstance(model, torch._dynamo.OptimizedModule):
        if not isinstance(model, DistributedDataParallel):
            return model._compiled_call_impl is not None
        model = model.module
    return True


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


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are distributed tensors (FSDP2, tensor parallelism)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
