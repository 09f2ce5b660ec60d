"""One growth event from probe to record, on a model as it is trained: wrapped, compiled, on one or many processes."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from transformers.activations import ACT2FN

from ..curvature import activation_of, analyze_curvature, curvature_at_zero
from ..curvature.samples import first_dimension
from ..growth import (
    GrowthConfig,
    GrowthEvent,
    GrowthPlan,
    PreparedGrowth,
    event_budget,
    line_search,
    plan_growth,
    prepare_growth,
    probe_loss,
    record_,
)
from ..growth.operators import DEPTH_OPERATORS
from ..models.modeling_saddle import GrowablePreTrainedModel
from .checks import check_optimizer
from .distributed import (
    Replicas,
    ddp_arguments,
    find_ddp,
    fingerprint,
    follows,
    is_compiled,
    is_sharded,
    rebuild_ddp_,
    unwrap,
)
from .followers import adopt_history_, check_followers
from .probe import Loss, event_seed, private_randomness


def growth_event_(
    model: nn.Module,
    optimizer: Optimizer | None,
    batches: Sequence[Any],
    config: GrowthConfig,
    *,
    event: int = 0,
    step: int | None = None,
    epoch: float | None = None,
    lr_ratio: float = 1.0,
    loss: Loss | None = None,
    group: "dist.ProcessGroup | None" = None,
    followers: Sequence[GrowablePreTrainedModel] = (),
) -> GrowthEvent:
    """
    Measure, plan and grow, as [`GrowthCallback`] does; for hand-written loops.

    Call it on all processes between two steps, after `optimizer.step()` and `optimizer.zero_grad()`. The wrapper of
    DDP and that of `torch.compile` stay the same objects. Parameters' gradients, the random generators and the modes
    of modules are not touched, so that an event without growth leaves no trace but its record.

    Args:
        model (`nn.Module`): The model as it is trained, that is, what `accelerator.prepare` returned.
        optimizer (`Optimizer` or `AcceleratedOptimizer`, *optional*): The optimizer that trains it.
        batches (`Sequence`): The probe batches of this process, see [`probe_batches`].
        config ([`GrowthConfig`]): Where, how and how much to grow.
        event (`int`, *optional*, defaults to 0): Index of the event, from 0.
        step (`int`, *optional*): Training step, for the record.
        epoch (`float`, *optional*): Epoch, for the record.
        lr_ratio (`float`, *optional*, defaults to 1.0): Learning rate relative to its peak, for `schedule="lr"`.
        loss (`Callable`, *optional*): Maps model and batch to the mean loss; the loss of the training. Defaults to
            `model(**batch).loss`.
        group (`torch.distributed.ProcessGroup`, *optional*): The processes that train the model. Defaults to those of
            its DDP wrapper.
        followers (`Sequence`, *optional*): Models of the same shapes that grow by the same plan, such as the
            `module` of a `torch.optim.swa_utils.AveragedModel`; if one cannot grow, nothing does.

    Returns:
        [`GrowthEvent`]: The record, which is also the last event of the model's history. `seconds` is all that the
        event took.

    Raises:
        ValueError: If the model cannot grow (see [`check_growable`]), nothing can be measured, the optimizer or the
            DDP wrapper was made for other parameters, or the loss would not be finite. The model is as before.
        RuntimeError: If the processes do not agree, or another one failed. No process has grown then.
    """
    started = time.perf_counter()
    inner, replicas = check_growable(model), Replicas.of(model) if group is None else Replicas(group)
    try:
        with private_randomness(event_seed(config, event)):
            record = {"step": step, "epoch": epoch}
            done = _grow_(model, optimizer, batches, config, replicas, event, lr_ratio, loss, record, followers)
    except Exception as error:
        if replicas.size > 1:
            error.add_note(
                f"In growth event {event} on rank {replicas.rank} of {replicas.size}. If this is a lost connection or "
                "a timeout, another rank has failed or hangs: see its output. Resume from the last checkpoint."
            )
        raise
    done.seconds = time.perf_counter() - started
    record_(inner, done)
    adopt_history_(inner, followers)
    return done


def _grow_(
    model: nn.Module,
    optimizer: Optimizer | None,
    batches: Sequence[Any],
    config: GrowthConfig,
    replicas: Replicas,
    event: int,
    lr_ratio: float,
    loss: Loss | None,
    record: dict[str, Any],
    followers: Sequence[GrowablePreTrainedModel],
) -> GrowthEvent:
    inner = check_growable(model)

    def check() -> None:
        check_bound(model, optimizer)
        check_followers(inner, followers)

    replicas.together("Checking what follows the model", check)
    if replicas.size > 1:
        replicas.check_equal("model and optimizer before the growth", fingerprint(inner, optimizer))
    plan, loss_before = decide(inner, batches, config, replicas, event=event, lr_ratio=lr_ratio, loss=loss)
    record = record | {"loss_before": loss_before}
    done = commit_(model, plan, optimizer, batches, replicas, loss, record, followers)
    if plan and replicas.size > 1:
        replicas.check_equal("model and optimizer after the growth", fingerprint(inner, optimizer))
    return done


def check_growable(model: nn.Module) -> GrowablePreTrainedModel:
    """
    The growable model inside of the wrappers of DDP and `torch.compile`.

    Raises:
        ValueError: If it is not a Saddle model, is sharded, quantised, or has adapters. The message tells what to do.
    """
    inner = unwrap(model)
    if is_sharded(inner):
        raise ValueError(
            "The model is sharded (FSDP2) and cannot grow in place. Use `growth_event_sharded_` in a loop with "
            "Accelerate; a Trainer trains Saddle models with DDP, where FSDP is not configured."
        )
    if not isinstance(inner, GrowablePreTrainedModel):
        raise ValueError(
            f"Only Saddle models grow, got a {type(inner).__name__}. Convert a stock model with "
            "`SaddleViTForImageClassification.from_stock(model)`; merge adapters of PEFT into their model first "
            "(`model.merge_and_unload()`); DeepSpeed and FSDP1 wrappers are not supported, use DDP."
        )
    if inner._hf_peft_config_loaded:
        raise ValueError(
            "Adapters (`model.add_adapter`) have taken the place of linears, which cannot grow then. Remove them by "
            "`model.delete_adapter`, or train the adapters without a GrowthCallback."
        )
    inner.check_linears()
    return inner


def decide(
    model: GrowablePreTrainedModel,
    batches: Sequence[Any],
    config: GrowthConfig,
    replicas: Replicas,
    *,
    event: int,
    lr_ratio: float,
    loss: Loss | None,
) -> tuple[GrowthPlan, float | None]:
    """The plan that all processes agree on, and the probe's loss before it; nothing is measured without a budget."""
    if event_budget(model, config, event, lr_ratio) <= 0:
        return GrowthPlan(criterion=config.criterion, budget=0.0, seed=config.growth_seed), None
    report = analyze_curvature(
        model,
        batches,
        config.criteria,
        loss=loss,
        linears=growable_paths(model, config),
        step_size=config.step_size,
        whiten=config.directions == "whitened",
        significance=config.significance,
        unit_activation=ACT2FN[model.config.hidden_act],
        seed=event_seed(config, event),
        distributed=replicas.size > 1,
        group=replicas.group,
    )

    def make_plan() -> GrowthPlan:
        plan = plan_growth(report, model, config, event=event, lr_ratio=lr_ratio)
        # The probe samples of the first process decide how far to go: a random part of all.
        return line_search(model, plan, batches, loss=loss) if config.line_search else plan

    return replicas.agree_on(replicas.together("Planning the growth", make_plan)), report.loss


def commit_(
    model: nn.Module,
    plan: GrowthPlan,
    optimizer: Optimizer | None,
    batches: Sequence[Any],
    replicas: Replicas,
    loss: Loss | None,
    record: dict[str, Any],
    followers: Sequence[GrowablePreTrainedModel] = (),
) -> GrowthEvent:
    """
    Grow on all processes or on none, measure the loss of the probe's samples, and make the wrappers follow.

    Raises:
        ValueError: If the grown model's loss is not finite on this process. No process has grown then.
        RuntimeError: If that happened to another process.
    """
    inner = check_growable(model)
    wrapper = find_ddp(model)

    def prepare() -> list[PreparedGrowth]:
        if wrapper is not None:
            ddp_arguments(wrapper)  # refuses what cannot follow
        adopt_history_(inner, followers)
        own = prepare_growth(inner, plan, optimizer, **record)
        return [own, *(prepare_growth(follower, plan, **record) for follower in followers)]

    prepared = replicas.together("The growth", prepare)
    event = prepared[0].event
    try:
        for each in prepared:
            each.commit_()
    except BaseException:
        rollback_(prepared)
        raise
    if not plan:
        return event
    if is_compiled(model):
        # A limited number of recompilations is allowed, after which torch silently runs eagerly.
        torch.compiler.reset()

    def measure() -> float:
        value = probe_loss(inner, batches, loss)
        if not math.isfinite(value):
            raise ValueError(
                f"The loss of the probe set is {value} after the growth, which was undone: the model is as before. "
                "Use `line_search=True`, or a smaller `step_size` or `gain_init`."
            )
        return value

    try:
        own = replicas.together("Measuring the grown model", measure)
    except BaseException:
        rollback_(prepared)
        raise
    event.loss_after = replicas.mean(own, _samples(batches))
    if wrapper is not None:
        rebuild_ddp_(wrapper)
    return event


def rollback_(prepared: Sequence[PreparedGrowth]) -> None:
    """Undo growths; those that were not committed are as before anyway."""
    for each in prepared:
        each.rollback_()


def check_bound(model: nn.Module, optimizer: Optimizer | None) -> None:
    """
    Verify that optimizer and DDP wrapper know the parameters that the model has.

    Raises:
        ValueError: If they were made for others.
    """
    if optimizer is not None:
        check_optimizer(check_growable(model), optimizer)
    wrapper = find_ddp(model)
    if wrapper is not None and not follows(wrapper):
        raise ValueError(
            "The DDP wrapper was made for other parameters and does not average the gradients of the model's. It has "
            "changed its shapes since (a checkpoint was loaded). Call `rebind_` right after that."
        )


def growable_paths(model: GrowablePreTrainedModel, config: GrowthConfig) -> list[str]:
    """
    Paths of the linears that may grow.

    Raises:
        ValueError: If there are none, the config names layers that the model lacks, or it asks for what the model's
            activation cannot do.
    """
    check_activation(model.config.hidden_act, config)
    count = model.config.num_hidden_layers
    beyond = [layer for layer in config.layers or () if layer >= count]
    if beyond:
        raise ValueError(f"`layers` of the GrowthConfig names {beyond}, but the model has {count}, counted from 0.")
    paths = [
        site.path
        for site in model.growable_linears()
        if (config.linears is None or site.linear in config.linears)
        and (config.layers is None or site.layer in config.layers)
        and site.module.weight.requires_grad
    ]
    if not paths:
        raise ValueError("No linear may grow: see `linears` and `layers` of the config, and whether all are frozen.")
    return paths


def check_activation(name: str, config: GrowthConfig) -> None:
    """
    Verify that an activation may be that of branch units, and has the curvature that neurons are ranked by.

    Args:
        name (`str`): A name in transformers' `ACT2FN`.
        config ([`GrowthConfig`]): How the model is to grow.

    Raises:
        ValueError: If not; the message tells why and what to do.
    """
    activation = ACT2FN[name]
    as_measured = config.operator == "auto"
    deepens = config.operator in DEPTH_OPERATORS or (as_measured and not {*config.ranking} <= {"width", "gradmax"})
    remedy = "Use an operator of width, or another `hidden_act`."
    try:
        if deepens and any(True for _ in activation.parameters()):
            raise ValueError("branch units with an activation that has parameters of its own are not supported")
        pairs = config.operator == "residual_pair" or (as_measured and config.ranking == ("paper_score",))
        if pairs and float(activation(torch.zeros(()))) != 0:
            raise ValueError("residual pairs keep the function only for activations that are 0 at 0")
        if "depth" in config.ranking:
            remedy = "Use `criterion='width'`, or another `hidden_act`."
            curvature_at_zero(activation)
        elif config.ranking == ("width",):
            remedy = "Use `criterion='depth'` where depth units may have this activation, or another `hidden_act`."
            activation_of(activation)
    except ValueError as error:
        raise ValueError(f"The model cannot grow with `hidden_act={name!r}`: {error}. {remedy}") from error


def _samples(batches: Sequence[Any]) -> float:
    return float(sum(first_dimension(batch) or 0 for batch in batches))
