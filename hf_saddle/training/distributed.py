"""Several processes train one model: one decision for all of them, checked by hashes."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from ..curvature.ranks import Ranks, Result
from ..growth import GrowthPlan
from ..growth.optimizer.state import held_parameters
from .wrappers import find_ddp


# A single process, or DDP.
SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
)


def processes() -> int:
    """How many processes the launcher has brought together, whether they train one model or not."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Replicas(Ranks):
    """
    The processes that hold a copy of one model each, or a part of it; a no-op for a single process.

    Args:
        group (`torch.distributed.ProcessGroup`, *optional*): The processes; `None` is a single one.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None):
        super().__init__(group is not None, group)

    @classmethod
    def of(cls, model: nn.Module) -> "Replicas":
        """The processes that a possibly wrapped model is trained by."""
        if isinstance(model, FSDPModule):
            return cls(dist.group.WORLD)
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

    def check_same_model(self, what: str, model: nn.Module, optimizer: Optimizer | None) -> None:
        """
        Verify that all processes have the same parameters and optimizer states.

        Raises:
            RuntimeError: If they do not.
        """
        if self.size > 1:
            self.check_equal(what, fingerprint(model, optimizer))

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Note on an error in which part of the work, and in which of several processes it came up."""
        try:
            yield
        except Exception as error:
            if self.size > 1:
                error.add_note(
                    f"In {what} on rank {self.rank} of {self.size}. If this is a lost connection or a timeout, "
                    "another rank has failed or hangs: see its output. Resume from the last checkpoint."
                )
            raise


def fingerprint(model: nn.Module, optimizer: Optimizer | None = None) -> str:
    """
    A hash of a model's parameters, and of its optimizer's state: names, shapes and sums in float64.

    Replicas that differ in a single bit have different sums almost surely, at a fraction of the cost of hashing all.
    """
    named = [(name, tensor) for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)]
    if optimizer is not None:
        for index, parameter in enumerate(held_parameters(optimizer)):
            state = optimizer.state.get(parameter, {})
            named += [(f"{index}.{name}", value) for name, value in state.items() if isinstance(value, torch.Tensor)]
    head = json.dumps([(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in named])
    digest = hashlib.sha256(head.encode())
    if named:
        sums = torch.stack([tensor.detach().sum(dtype=torch.float64) for _, tensor in named])
        digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()
