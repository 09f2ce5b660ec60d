"""What the growth of a sharded model has come to, while its values are gathered block by block."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ...growth import GrowthEvent, GrowthPlan, PreparedGrowth, prepare_growth
from ...growth.surgery.blocks import Values
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.parameters import follow_, whole
from ..distributed import Replicas, fingerprint
from .resharding import place_, placeholders


class Course(Values):
    """
    The shards of a model and the states of its optimizer, by the placeholders that the model holds meanwhile but for
    the block that grows. Names are no key to them: new blocks change those of others.

    Args:
        model ([`GrowablePreTrainedModel`]): The model, which holds placeholders.
        optimizer (`Optimizer`, *optional*): What trains it.
        shards (`Mapping[str, nn.Parameter]`): Its sharded parameters by name.
        replicas ([`Replicas`]): The processes.
    """

    def __init__(
        self,
        model: GrowablePreTrainedModel,
        optimizer: Optimizer | None,
        shards: Mapping[str, nn.Parameter],
        replicas: Replicas,
    ):
        super().__init__(next(iter(shards.values())).device)
        self.model, self.optimizer, self.replicas = model, optimizer, replicas
        present = dict(model.named_parameters(remove_duplicate=False))
        self.shards = {present[name]: shard for name, shard in shards.items()}
        self.replaced: dict[nn.Parameter, nn.Parameter] = {}  # shards by those whose place they took
        self.came: set[nn.Parameter] = set()  # shards without predecessor
        self.states: dict[nn.Parameter, dict[str, Any]] = {}
        self.twin: Optimizer | None = None
        if optimizer is not None:
            held = {shard: placeholder for placeholder, shard in self.shards.items()}
            states: dict[Any, Any] = dict(optimizer.state)
            self.states = {held[shard]: state for shard, state in states.items()}
            # It trains what the model holds at the time, and has the states of the block that grows.
            self.twin = copy.copy(optimizer)
            self.twin.param_groups = [
                {**group, "params": [held[shard] for shard in group["params"]]} for group in optimizer.param_groups
            ]
            self.twin.state = defaultdict(dict)

    def insert_(self, plan: GrowthPlan, **record: Any) -> PreparedGrowth:
        """Insert new blocks, each of which is whole on every process while it is made."""
        # What can fail on one process alone fails without values, before any process waits for the values of another.
        self.replicas.together("The growth", lambda: prepare_growth(self.model, plan, self.twin, **record))
        prepared = prepare_growth(self.model, plan, self.twin, self, **record)
        prepared.commit_()
        return prepared

    @contextmanager
    def of(self, made: nn.Module, like: nn.Module, others: Sequence[nn.Module]) -> Iterator[None]:
        own, known = (dict(module.named_parameters(remove_duplicate=False)) for module in (made, like))
        place_(made, {name: nn.Parameter(whole(self.shards[known[name]]).clone()) for name in own})
        held = [dict(other.named_parameters(remove_duplicate=False)) for other in others]
        for other, parameters in zip(others, held, strict=True):
            place_(other, {name: nn.Parameter(whole(self.shards[value])) for name, value in parameters.items()})
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        self.replicas.together("Making a block", lambda: _check_made(made, failed))
        self.replicas.check_equal("a new block", fingerprint(made))
        for other, parameters in zip(others, held, strict=True):
            place_(other, parameters)
        for name, value in list(made.named_parameters(remove_duplicate=False)):
            # Of fresh weights there may be fewer than of the block that they are made like: it had branches.
            shard = nn.Parameter(_scatter(value.detach(), self.shards[known[name]]))
            self.came.add(shard)
            place_(made, {name: self._keep_(shard)})

    def grow_(self, path: str, plan: GrowthPlan, **record: Any) -> GrowthEvent:
        """Grow the block, or the list of blocks, at a path, which is whole on every process for that time."""
        own = self._held(lambda name, _: name.startswith(f"{path}."))
        back: dict[nn.Parameter, nn.Parameter] = {}
        like: Any = None
        for placeholder in own.values():
            like = self.shards[placeholder]
            back[follow_(nn.Parameter(whole(like)), placeholder)] = placeholder
        there = {placeholder: value for value, placeholder in back.items()}
        place_(self.model, {name: there[placeholder] for name, placeholder in own.items()})
        self._exchange_(there)
        if self.twin is not None:
            for value, placeholder in back.items():
                if placeholder in self.states:
                    self.twin.state[value] = {key: _gathered(part) for key, part in self.states[placeholder].items()}
        prepared = self.replicas.together("The growth", lambda: prepare_growth(self.model, plan, self.twin, **record))
        event = prepared.commit_()
        self.replicas.check_equal(f"{path} after the growth", fingerprint(self.model.get_submodule(path), self.twin))
        before = {new: back[old] for old, new in event.replaced.items()}
        for value in self._held(lambda _, value: not value.is_meta).values():
            if value not in back:
                back[value] = self._settle_(value, like, before.get(value))
        grown = self._held(lambda _, value: not value.is_meta)
        place_(self.model, {name: back[value] for name, value in grown.items()})
        self._exchange_(back)
        if self.twin is not None:
            self.twin.state.clear()
        # Without the parameters themselves, which are to be whole for this block only.
        return replace(event, replaced={}, added={})

    def _settle_(self, value: nn.Parameter, like: Any, before: nn.Parameter | None) -> nn.Parameter:
        """Keep this process's shard of a parameter that has grown or came; returns its placeholder."""
        shard = follow_(nn.Parameter(_scatter(value.detach(), like)), value)
        if before is None:
            self.came.add(shard)
        else:
            self.replaced[self.shards.pop(before)] = shard
            self.states.pop(before, None)
        placeholder = self._keep_(shard)
        if self.twin is not None and value in self.twin.state:
            self.states[placeholder] = {
                key: _scatter(part, like) if isinstance(part, Tensor) and part.shape == value.shape else part
                for key, part in self.twin.state[value].items()
            }
        return placeholder

    def _keep_(self, shard: nn.Parameter) -> nn.Parameter:
        """Keep a new shard; returns the placeholder that the model is to hold for it."""
        (placeholder,) = placeholders({"": shard}).values()
        self.shards[placeholder] = shard
        return placeholder

    def by_name(self) -> dict[str, nn.Parameter]:
        """The shards, by the names that they have in the model."""
        present = self.model.named_parameters(remove_duplicate=False)
        return {name: self.shards[placeholder] for name, placeholder in present}

    def finish_(self) -> None:
        """Let shards be trained or not, as what the model has held for them, and the optimizer train them."""
        for placeholder, shard in self.shards.items():
            follow_(shard, placeholder)
        if self.optimizer is None or self.twin is None:
            return
        for group, grown in zip(self.optimizer.param_groups, self.twin.param_groups, strict=True):
            group.update({key: value for key, value in grown.items() if key != "params"})
            group["params"][:] = [self.shards[placeholder] for placeholder in grown["params"]]
        self.optimizer.state.clear()
        self.optimizer.state.update({self.shards[placeholder]: state for placeholder, state in self.states.items()})

    def _held(self, wanted: Callable[[str, nn.Parameter], bool]) -> dict[str, nn.Parameter]:
        """Some of what the model holds, by name."""
        present = self.model.named_parameters(remove_duplicate=False)
        return {name: value for name, value in present if wanted(name, value)}

    def _exchange_(self, others: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Let the twin of the optimizer train others in place of some."""
        for group in self.twin.param_groups if self.twin is not None else ():
            group["params"][:] = [others.get(value, value) for value in group["params"]]


def _check_made(made: nn.Module, failed: Exception | None) -> None:
    """Raise what went wrong while a block was made."""
    if failed is not None:
        raise failed
    for name, value in made.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"{name} of a new block would have values that are not finite. Check the model's weights."
            )


def _gathered(value: Any) -> Any:
    """A state that is not sharded; all processes have to call this for a sharded one."""
    if isinstance(value, DTensor):
        return whole(value)
    return value.clone() if isinstance(value, Tensor) else value


def _scatter(value: Tensor, like: Any) -> Tensor:
    """This process's shard of a whole tensor, placed as another one is."""
    return distribute_tensor(value.contiguous(), like.device_mesh, like.placements)
