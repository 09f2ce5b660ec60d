"""Growing a sharded model and its optimizer in place, block by block: no process ever holds more than one whole."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer

from ..growth import GrowthEvent, GrowthHistory, GrowthPlan, prepare_growth
from ..growth.optimizer_rules import State, rules_of
from ..growth.optimizer_state import inner_optimizer
from ..growth.snapshot import Snapshot
from ..growth.surgery import layer_record
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.parameters import follow_
from ..models.sites import Place
from .distributed import Replicas, fingerprint
from .resharding import place_, placeholders, shard_anew_, take_back_


States = dict[str, dict[str, Any]]


def check_shards(model: nn.Module, optimizer: Optimizer) -> None:
    """
    Verify that a sharded model and its optimizer can be taken apart and put together.

    Raises:
        ValueError: If a parameter is not sharded by rows on one mesh, is kept on another device than it is trained on,
            holds a gradient, or is not of the model; or a state of the optimizer has neither the shape of its
            parameter nor one entry.
    """
    shards: dict[str, Any] = dict(model.named_parameters())
    odd = [name for name, value in shards.items() if not isinstance(value, DTensor) or value.placements != (Shard(0),)]
    if odd:
        raise ValueError(
            f"{odd[0]} is not sharded by rows over all processes, and cannot grow. Use FSDP2 alone: without "
            "`ignored_modules`, without replicas of shards (HSDP), tensor, context or expert parallelism."
        )
    away = [name for name, value in shards.items() if value.device.type != value.device_mesh.device_type]
    if away:
        raise ValueError(
            f"{away[0]} is kept on the {shards[away[0]].device.type} between steps (CPU offload), where it cannot "
            "grow. Leave out `cpu_offload`."
        )
    if {State.ROW_MEANS, State.COLUMN_MEANS} & set(rules_of(optimizer).states.values()):
        raise ValueError(
            f"The states of {type(optimizer).__name__} are factored, and cannot be sharded anew. Use one whose "
            "states have the shape of their parameter, like AdamW or SGD."
        )
    if any(value.grad is not None and bool(value.grad.to_local().any()) for value in shards.values()):
        raise ValueError(
            "Parameters hold gradients, which a growth would lose. Grow after `optimizer.step()` and "
            "`optimizer.zero_grad()`."
        )
    known = set(shards.values())
    for group in optimizer.param_groups:
        if any(parameter not in known for parameter in group["params"]):
            raise ValueError("The optimizer trains parameters that are not of the sharded model. Give it only those.")
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape != parameter.shape and value.numel() != 1:
                raise ValueError(
                    f"The state `{key}` of {type(optimizer).__name__} has neither the shape of its parameter nor one "
                    "entry, and cannot be sharded anew. Use AdamW or SGD."
                )


def grow_sharded_(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    optimizer: Optimizer,
    *,
    shard: Callable[[nn.Module], Any],
    replicas: Replicas,
    **record: Any,
) -> tuple[GrowthEvent, Callable[[], None]]:
    """
    Grow a model that FSDP2 has sharded, with its optimizer, on all processes or on none.

    The blocks that the plan names are gathered one after the other, each with its part of the optimizer's state, grow,
    and are sharded again. Modules, optimizer and groups stay the same objects, and so do parameters that stay as they
    are.

    Args:
        model ([`GrowablePreTrainedModel`]): The sharded model.
        plan ([`GrowthPlan`]): What is to grow; not empty.
        optimizer (`Optimizer` or `AcceleratedOptimizer`): What trains it.
        shard (`Callable`): Shards the model in place, as it was done before the training.
        replicas ([`Replicas`]): The processes.
        record: Fields of the record, see [`prepare_growth`].

    Returns:
        `tuple[GrowthEvent, Callable]`: The record, and what undoes all of it until the next step.

    Raises:
        ValueError: If it cannot grow; all is as before.
        RuntimeError: If that happened to another process, or the processes differ.
    """
    inner = inner_optimizer(optimizer)
    replicas.together("Checking the shards", lambda: check_shards(model, inner))
    groups, states = [group | {"params": list(group["params"])} for group in inner.param_groups], dict(inner.state)
    names = {parameter: name for name, parameter in model.named_parameters()}
    history = GrowthHistory.from_model(model)
    course = _Course(model, inner, dict(model.named_parameters(remove_duplicate=False)), names)
    before = take_back_(model)
    pointers = Snapshot(model)

    def undo() -> None:
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            take_back_(model)
        pointers.restore()
        place_(model, placeholders(before))
        for group, was in zip(inner.param_groups, groups, strict=True):
            group.update(was | {"params": group["params"]})
            group["params"][:] = was["params"]
        inner.state.clear()
        inner.state.update(states)
        shard_anew_(model, shard, before)

    try:
        events = [
            course.grow_block_(path, replace(plan, growths=growths), replicas, **record)
            for path, growths in _by_block(model, plan).items()
        ]
        event = replace(
            events[-1],
            layers=[layer_record(growth) for growth in plan.growths],
            operators=sorted({growth.operator for growth in plan.growths}),
            predicted_gain=plan.predicted_gain,
            parameters_before=events[0].parameters_before,
            macs_before=events[0].macs_before,
            replaced={before[name]: new for name, new in course.shards.items() if before.get(name, new) is not new},
            added={name: new for name, new in course.shards.items() if name not in before},
        )
        history.append(event)
        history.attach_(model)
        shard_anew_(model, shard, course.shards)
        course.rebind_()
    except BaseException:
        undo()
        raise
    return event, undo


class _Course:
    """
    What the growth of a sharded model has come to: its shards and the states of its optimizer, by name, while the
    model itself holds placeholders but for the block that grows.
    """

    def __init__(
        self,
        model: GrowablePreTrainedModel,
        optimizer: Optimizer,
        shards: Mapping[str, nn.Parameter],
        names: Mapping[nn.Parameter, str],
    ):
        self.model, self.optimizer = model, optimizer
        self.shards = dict(shards)
        held: dict[Any, Any] = dict(optimizer.state)
        self.states: States = {names[parameter]: state for parameter, state in held.items()}
        self.groups = [
            {**group, "params": [names[parameter] for parameter in group["params"]]}
            for group in optimizer.param_groups
        ]

    def grow_block_(self, path: str, plan: GrowthPlan, replicas: Replicas, **record: Any) -> GrowthEvent:
        """Grow one block, which is whole on every process for that time."""
        own = [name for name in self.shards if name.startswith(f"{path}.")]
        like: Any = self.shards[own[0]]
        whole = {name: follow_(nn.Parameter(_whole(self.shards[name])), self.shards[name]) for name in own}
        place_(self.model, whole)
        twin = self._twin({name: self.states[name] for name in own if name in self.states})
        prepared = replicas.together("The growth", lambda: prepare_growth(self.model, plan, twin, **record))
        # Without the parameters themselves, which are to be whole for this block only.
        event = replace(prepared.commit_(), replaced={}, added={})
        replicas.check_equal(f"{path} after the growth", fingerprint(self.model.get_submodule(path), twin))
        grown = {
            name: value for name, value in self.model.named_parameters(remove_duplicate=False) if not value.is_meta
        }
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        self.groups = [
            {**group, "params": [names[parameter] for parameter in group["params"]]} for group in twin.param_groups
        ]
        for name, value in grown.items():
            if value is whole.get(name):
                continue
            self.shards[name] = follow_(nn.Parameter(_scatter(value.detach(), like)), value)
            self.states.pop(name, None)
            if value in twin.state:
                self.states[name] = {
                    key: _scatter(part, like) if isinstance(part, Tensor) and part.shape == value.shape else part
                    for key, part in twin.state[value].items()
                }
        place_(self.model, placeholders(grown))
        return event

    def _twin(self, states: States) -> Optimizer:
        """An optimizer of the same kind and groups for the model as it is, with the whole states of a block."""
        present = dict(self.model.named_parameters())
        twin = copy.copy(self.optimizer)
        twin.param_groups = [{**group, "params": [present[name] for name in group["params"]]} for group in self.groups]
        twin.state = defaultdict(dict)
        for name, state in states.items():
            twin.state[present[name]] = {key: _whole(value) for key, value in state.items()}
        return twin

    def rebind_(self) -> None:
        """Let the optimizer train the shards."""
        for group, grown in zip(self.optimizer.param_groups, self.groups, strict=True):
            names = grown.pop("params")
            group.update(grown)
            group["params"][:] = [self.shards[name] for name in names]
        self.optimizer.state.clear()
        self.optimizer.state.update({self.shards[name]: state for name, state in self.states.items()})


def _by_block(model: GrowablePreTrainedModel, plan: GrowthPlan) -> dict[str, tuple[Any, ...]]:
    """The parts of a plan by the path of the block that each grows."""
    roots = {site.path: site.root for site in model.growable_linears()}
    parts: dict[str, tuple[Any, ...]] = {}
    for growth in plan.growths:
        place = Place.parse(growth.linear)
        before_base = growth.linear[: growth.linear.index(roots[growth.linear])]
        path = before_base + place.block
        parts[path] = (*parts.get(path, ()), growth)
    return parts


def _whole(value: Any) -> Any:
    """A tensor that is not sharded; all processes have to call this for a distributed one."""
    if isinstance(value, DTensor):
        shard: Any = value.detach()
        return shard.full_tensor()
    return value.clone() if isinstance(value, Tensor) else value


def _scatter(value: Tensor, like: DTensor) -> Tensor:
    """This process's shard of a whole tensor, placed as another one is."""
    return distribute_tensor(value.contiguous(), like.device_mesh, like.placements)
