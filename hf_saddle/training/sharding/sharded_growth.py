"""Growing a sharded model and its optimizer in place, block by block: no process ever holds more than one whole."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ...curvature.loss import Loss
from ...growth import GrowthEvent, GrowthHistory, GrowthPlan, prepare_growth, probe_loss
from ...growth.optimizer.state import inner_optimizer
from ...growth.surgery.grow import layer_record
from ...growth.surgery.snapshot import Snapshot
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.parameters import follow_
from ...models.sites import Place
from ..checks.shard_checks import check_neurons_only, check_shards, check_states
from ..distributed import Replicas, fingerprint
from .resharding import place_, placeholders, shard_anew_, take_back_


States = dict[str, dict[str, Any]]


def grow_sharded_(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    optimizer: Optimizer | None,
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
        plan ([`GrowthPlan`]): What is to grow; an empty one is recorded and changes nothing else.
        optimizer (`Optimizer` or `AcceleratedOptimizer`, *optional*): What trains it; `None` for a trial.
        shard (`Callable`): Shards the model in place, as it was done before the training.
        replicas ([`Replicas`]): The processes.
        record: Fields of the record, see [`prepare_growth`].

    Returns:
        `tuple[GrowthEvent, Callable]`: The record, and what undoes all of it until the next step.

    Raises:
        ValueError: If it cannot grow; all is as before.
        RuntimeError: If that happened to another process, or the processes differ.
    """
    inner = None if optimizer is None else inner_optimizer(optimizer)

    def check() -> None:
        check_neurons_only(plan)
        check_shards(model)
        if inner is not None:
            check_states(model, inner)

    replicas.together("Checking the shards", check)
    course, restore_optimizer = _Course(model, inner), _way_back(inner)
    before = take_back_(model)
    pointers = Snapshot(model)

    def undo() -> None:
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            take_back_(model)
        pointers.restore()
        place_(model, placeholders(before))
        restore_optimizer()
        shard_anew_(model, shard, before)

    try:
        history = GrowthHistory.from_model(model)
        events = [
            course.grow_block_(path, replace(plan, growths=growths), replicas, **record)
            for path, growths in _by_block(model, plan).items()
        ] or [prepare_growth(model, plan, **record).commit_()]
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


def loss_of_sharded_plan(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    shard: Callable[[nn.Module], Any],
    replicas: Replicas,
) -> float:
    """[`loss_of_plan`] of a model that FSDP2 has sharded; `shard` and `replicas` as in [`grow_sharded_`]."""
    _, undo = grow_sharded_(model, plan, None, shard=shard, replicas=replicas)
    try:
        return probe_loss(model, batches, loss)
    finally:
        undo()


def _way_back(optimizer: Optimizer | None) -> Callable[[], None]:
    """What gives an optimizer the parameters, groups and states again that it has now."""
    if optimizer is None:
        return lambda: None
    groups, states = [group | {"params": list(group["params"])} for group in optimizer.param_groups], optimizer.state
    held = dict(states)

    def restore() -> None:
        for group, was in zip(optimizer.param_groups, groups, strict=True):
            group.update(was | {"params": group["params"]})
            group["params"][:] = was["params"]
        states.clear()
        states.update(held)

    return restore


class _Course:
    """
    What the growth of a sharded model has come to: its shards and the states of its optimizer, by name, while the
    model itself holds placeholders but for the block that grows.
    """

    def __init__(self, model: GrowablePreTrainedModel, optimizer: Optimizer | None):
        self.model, self.optimizer = model, optimizer
        self.shards = dict(model.named_parameters(remove_duplicate=False))
        self.states: States = {}
        self.groups: list[dict[str, Any]] = []
        if optimizer is not None:
            names = {parameter: name for name, parameter in model.named_parameters()}
            held: dict[Any, Any] = dict(optimizer.state)
            self.states = {names[parameter]: state for parameter, state in held.items()}
            self.groups = _by_name(optimizer, names)

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
        if twin is not None:
            self.groups = _by_name(twin, {value: name for name, value in self.model.named_parameters()})
        for name, value in grown.items():
            if value is whole.get(name):
                continue
            self.shards[name] = follow_(nn.Parameter(_scatter(value.detach(), like)), value)
            self.states.pop(name, None)
            if twin is not None and value in twin.state:
                self.states[name] = {
                    key: _scatter(part, like) if isinstance(part, Tensor) and part.shape == value.shape else part
                    for key, part in twin.state[value].items()
                }
        place_(self.model, placeholders(grown))
        return event

    def _twin(self, states: States) -> Optimizer | None:
        """An optimizer of the same kind and groups for the model as it is, with the whole states of a block."""
        if self.optimizer is None:
            return None
        present = dict(self.model.named_parameters())
        twin = copy.copy(self.optimizer)
        twin.param_groups = [{**group, "params": [present[name] for name in group["params"]]} for group in self.groups]
        twin.state = defaultdict(dict)
        for name, state in states.items():
            twin.state[present[name]] = {key: _whole(value) for key, value in state.items()}
        return twin

    def rebind_(self) -> None:
        """Let the optimizer, if there is one, train the shards."""
        if self.optimizer is None:
            return
        for group, grown in zip(self.optimizer.param_groups, self.groups, strict=True):
            names = grown.pop("params")
            group.update(grown)
            group["params"][:] = [self.shards[name] for name in names]
        self.optimizer.state.clear()
        self.optimizer.state.update({self.shards[name]: state for name, state in self.states.items()})


def _by_name(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> list[dict[str, Any]]:
    """The groups of an optimizer, with the names of their parameters."""
    return [
        {**group, "params": [names[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
    ]


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
