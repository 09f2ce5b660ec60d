"""Growing a model in place, together with its config, its history and its optimizer, all or nothing."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from torch.optim import Optimizer

from ...models.heads import fit_heads_
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.parameters import is_sharded
from ...models.restacking import assign_
from ...version import __version__
from ..costs import Cost
from ..counting import count_layer_macs, count_macs, count_parameters, count_positions
from ..operators import HEAD_OPERATORS
from ..optimizer.state import carry_optimizer_state_
from ..optimizer_rules import inner_optimizer
from ..records.event import GrowthEvent
from ..records.history import GrowthHistory
from ..records.layer_record import layer_record
from ..records.plan import GrowthPlan
from .attachments import check_attachments
from .blocks import Values, draft_blocks, inserted_blocks, rename_in_optimizer_, trained_outside
from .changes import Changes
from .drafting import check_plan, draft_growths
from .head_drafts import find_attention
from .install import check_changes, install_
from .shell import to_be_asked
from .snapshot import Snapshot


class PreparedGrowth:
    """
    A growth that is computed but not yet done, so that several processes can agree before any of them changes.

    Attributes:
        event ([`GrowthEvent`]): What will be recorded.
    """

    def __init__(self, event: GrowthEvent, changes: Changes, before: Snapshot, after: Snapshot):
        self.event = event
        self._changes = changes
        self._before = before
        self._after = after

    def commit_(self) -> GrowthEvent:
        """Grow. Only pointers are assigned; if that fails, all is as before."""
        try:
            self._after.restore()
        except BaseException:
            self._before.restore()
            raise
        self._changes.watch_()
        return self.event

    def rollback_(self) -> None:
        """Undo `commit_`. What has been trained since in parameters that did not change stays."""
        self._before.restore()
        self._changes.unwatch_()


def grow_(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    optimizer: Optimizer | None = None,
    *,
    step: int | None = None,
    epoch: float | None = None,
    loss_before: float | None = None,
) -> GrowthEvent:
    """
    Grow a model in place: its modules, config and history, and the optimizer that trains it.

    Call it after `optimizer.step()` and `optimizer.zero_grad()`. If anything fails, all of them are as before. The
    plan is data, so a second model grows in the same way: for an average of the weights (timm's `ModelEma`,
    `torch.optim.swa_utils.AveragedModel`) call `grow_(ema.module, plan)` right after `grow_(model, plan, optimizer)`.

    Args:
        model ([`GrowablePreTrainedModel`]):
            The model, not its wrapper (`accelerator.unwrap_model(model)`).
        plan ([`GrowthPlan`]):
            What is to grow; an empty plan is recorded and changes nothing else.
        optimizer (`Optimizer` or `AcceleratedOptimizer`, *optional*):
            The optimizer that trains the model, see [`carry_optimizer_state_`].
        step (`int`, *optional*): For the record.
        epoch (`float`, *optional*): For the record.
        loss_before (`float`, *optional*): For the record: loss of the probe set.

    Returns:
        [`GrowthEvent`]: The record, which is also appended to `model.growth_history`. `replaced` maps old parameters
        to new ones, `added` names those without predecessor. What is known only later (`loss_after`) is recorded by
        `record_(model, event)`.

    Raises:
        ValueError: If the plan does not fit the model, or the optimizer cannot follow. Nothing has changed then.

    Example:

    ```python
    >>> from hf_saddle.growth import GrowthPlan, LayerGrowth, grow_

    >>> growth = LayerGrowth.by_hand(model, "deit.layers.0.mlp.fc1", "split", neurons=[3, 5])
    >>> event = grow_(model, GrowthPlan((growth,)), optimizer)
    ```"""
    record: dict[str, Any] = {"step": step, "epoch": epoch, "loss_before": loss_before}
    return prepare_growth(model, plan, optimizer, **record).commit_()


def check_model(model: Any, sharded: bool = False) -> None:
    """
    Raise a `ValueError` for a model that is not growable, or that is wrapped, quantised, or sharded unless it may be.
    """
    if not isinstance(model, GrowablePreTrainedModel):
        raise ValueError(
            f"Only Saddle models grow, got a {type(model).__name__}. Unwrap it (`accelerator.unwrap_model(model)`), "
            "convert a stock model by `hf_saddle.growable(model)`, or merge adapters of PEFT into their model "
            "(`model.merge_and_unload()`). DeepSpeed and FSDP1 wrappers are not supported: use DDP."
        )
    if is_sharded(model) and not sharded:
        raise ValueError(
            "The model is sharded (FSDP2, tensor parallelism) and does not grow like one that each process holds "
            "whole. Use `grow_by_plan_sharded_` or `growth_event_sharded_` on all processes, or a GrowthTrainer; or "
            "save a checkpoint, grow it in one process, and resume from it."
        )
    model.check_linears(sharded)


@torch.no_grad()
def prepare_growth(
    model: GrowablePreTrainedModel,
    plan: GrowthPlan,
    optimizer: Optimizer | None = None,
    values: Values | None = None,
    **record: Any,
) -> PreparedGrowth:
    """
    Compute a growth without changing anything. Arguments and errors are those of [`grow_`]; new blocks start from
    `values`, by default those of the model.

    Where several processes train one model, each prepares, all compare, and then each commits.
    """
    started = time.perf_counter()
    check_model(model)
    history = GrowthHistory.leading_to(model)
    stacks, changes = draft_blocks(model, plan, values)
    heads = [growth for growth in plan.growths if growth.operator in HEAD_OPERATORS]
    of_neurons = [growth for growth in plan.growths if growth.operator not in HEAD_OPERATORS]
    attentions = [find_attention(model, growth.linear) for growth in heads]
    check_attachments(model, [growth.linear for growth in of_neurons], attentions)
    kind = check_plan(model, plan)
    # Neurons change the products of layers alone, at the same positions; the others take another forward pass.
    count = count_macs if heads or plan.blocks else partial(count_layer_macs, positions=count_positions(model))
    parameters, macs = count_parameters(model), count(model)
    named = {parameter: name for name, parameter in model.named_parameters()}
    also = [(holder, names) for holder, _, names in stacks.assignments]
    # The model grows and goes back, so that what can fail has not failed, and two sets of pointers are what is left.
    before = Snapshot(model, optimizer, also)
    try:
        # Blocks first: their copies are of the model as it was measured. What grows is then found at its new place.
        numbered = model.shapes()
        assign_(stacks.assignments)
        moved = plan.growths_behind(numbered)
        for draft in draft_growths(model, moved):
            install_(draft, kind, str(model.config.skip_activation), changes)
        check_changes(changes)
        if heads:
            fit_heads_(model.base_model)
        shapes = model.shapes()
        shapes.write_(model.config, kind)
        if optimizer is not None:
            carry_optimizer_state_(optimizer, changes, list(model.parameters()))
            named |= {change.new: named[change.old] for change in changes.replaced}
            rename_in_optimizer_(inner_optimizer(optimizer), model, named)
        event = GrowthEvent(
            criterion=plan.criterion,
            operators=sorted(plan.chosen),
            layers=[layer_record(growth) for growth in moved],
            predicted_gain=plan.predicted_gain,
            forecast=plan.forecast,
            predicted_error=plan.predicted_error,
            budget=plan.budget,
            candidates=dict(plan.candidates),
            held_back=plan.held_back,
            parameters_before=parameters,
            parameters_after=count_parameters(model),
            # Those of a head that was exchanged are in no history.
            macs_before=history.size.macs,
            macs_after=history.size.macs + count(model) - macs,
            skip_unit=kind,
            shapes=shapes,
            versions=versions(),
            replaced={change.old: change.new for change in changes.replaced},
            added={change.name: change.new for change in changes.added},
            blocks=[block.to_dict() for block in plan.blocks],
            frozen=plan.freeze,
            timing=plan.timing,
            **record,
        )
        event.seconds = time.perf_counter() - started
        history.append(event)
        if plan.freeze:
            changes.frozen += trained_outside(model, inserted_blocks(history))
        history.attach_(model)
        after = Snapshot(model, optimizer, also)
    finally:
        before.restore()
    return PreparedGrowth(event, changes, before, after)


# Lets a model be as a plan makes it while its context lasts.
Growing = Callable[[GrowablePreTrainedModel, GrowthPlan], AbstractContextManager[None]]


@contextmanager
def growing_(model: GrowablePreTrainedModel, plan: GrowthPlan) -> Iterator[None]:
    """The model itself grows, to be measured, and goes back."""
    prepared = prepare_growth(model, plan)
    prepared.commit_()
    try:
        yield
    finally:
        prepared.rollback_()


def added_by(model: GrowablePreTrainedModel, plan: GrowthPlan) -> Cost:
    """What a plan of any kinds adds to a model, exactly, whether one process has its values or not."""
    event = prepare_growth(to_be_asked(model), plan).event
    return Cost(event.parameters_after - event.parameters_before, event.macs_after - event.macs_before)


def record_(model: GrowablePreTrainedModel, event: GrowthEvent) -> None:
    """Write the last event into the model's history again, once `loss_after` is known."""
    history = GrowthHistory.from_model(model)
    history.update_last(event)
    history.attach_(model)


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what an event does."""
    return {
        "hf_saddle": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
