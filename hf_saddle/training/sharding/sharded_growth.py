"""Growing a sharded model and its optimizer in place, block by block: no process ever holds more than one whole."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...growth import GrowthEvent, GrowthHistory, GrowthPlan, LayerGrowth
from ...growth.operators import HEAD_OPERATORS
from ...growth.optimizer_rules import inner_optimizer
from ...growth.records.layer_record import layer_record
from ...growth.surgery.head_drafts import check_stacks_grow, find_attention
from ...growth.surgery.snapshot import Snapshot
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.parameters import is_sharded
from ...models.sites import Place
from ..checks.shard_checks import check_new_blocks, check_shards, check_states
from ..distributed import Replicas
from .course import Course
from .resharding import place_, placeholders, shard_anew_, show_shards_, take_back_


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
    show_shards_(model)

    def check() -> None:
        check_shards(model)
        check_stacks_grow(model, plan)
        if inner is not None:
            check_states(model, inner)
            if plan.blocks:
                check_new_blocks(inner)

    replicas.together("Checking the shards", check)
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    restore_optimizer = _way_back(inner)
    before = take_back_(model)
    course, way_back = Course(model, inner, before, replicas), [Snapshot(model).restore]

    def undo() -> None:
        if is_sharded(model):
            take_back_(model)
        for step in way_back:
            step()
        for parameter, was in trained:
            parameter.requires_grad_(was)
        place_(model, placeholders(before))
        restore_optimizer()
        shard_anew_(model, shard, before)

    try:
        history, numbered, events = GrowthHistory.from_model(model), model.shapes(), []
        growths = plan.growths_behind(numbered)
        if plan.blocks or not plan:
            # Blocks first: their copies are of the model as it was measured.
            inserted = course.insert_(replace(plan, growths=()), **record)
            way_back.append(inserted.rollback_)
            events.append(inserted.event)
        for path, own in _parts(model, growths).items():
            events.append(course.grow_(path, replace(plan, growths=own, blocks=(), freeze=False), **record))
        course.finish_()
        shards = course.by_name()
        event = replace(
            events[-1],
            layers=[layer_record(growth) for growth in growths],
            operators=sorted(plan.chosen),
            blocks=[block.to_dict() for block in plan.blocks],
            frozen=plan.freeze,
            predicted_gain=plan.predicted_gain,
            parameters_before=events[0].parameters_before,
            macs_before=events[0].macs_before,
            replaced=course.replaced,
            added={name: new for name, new in shards.items() if new in course.came},
        )
        history.append(event)
        history.attach_(model)
        shard_anew_(model, shard, shards)
    except BaseException:
        undo()
        raise
    return event, undo


@contextmanager
def growing_sharded_(
    model: GrowablePreTrainedModel, plan: GrowthPlan, *, shard: Callable[[nn.Module], Any], replicas: Replicas
) -> Iterator[None]:
    """[`growing_`] of a model that FSDP2 has sharded; `shard` and `replicas` as in [`grow_sharded_`]."""
    _, undo = grow_sharded_(model, plan, None, shard=shard, replicas=replicas)
    try:
        yield
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


def _parts(model: GrowablePreTrainedModel, growths: Sequence[LayerGrowth]) -> dict[str, tuple[LayerGrowth, ...]]:
    """
    Growths by the path of what each of them needs whole: its block, or all blocks of a list whose heads grow together.
    """
    stacks = {find_attention(model, growth.linear).stack for growth in growths if growth.operator in HEAD_OPERATORS}
    lists = {stack.partition(".*")[0] for stack in stacks if stack is not None}
    parts: dict[str, tuple[LayerGrowth, ...]] = {}
    for growth in growths:
        block = Place.parse(growth.linear).block
        path = model.inner_prefix + next((each for each in lists if block.startswith(f"{each}.")), block)
        parts[path] = (*parts.get(path, ()), growth)
    return parts
