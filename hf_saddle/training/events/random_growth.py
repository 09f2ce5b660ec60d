"""The control of growth by curvature: as many units of the same kind in the same places, of random neurons."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ...curvature import CurvatureReport, analyze_curvature
from ...curvature.loss import Loss
from ...growth import (
    GrowthConfig,
    GrowthEvent,
    GrowthPlan,
    LayerGrowth,
    NewBlock,
    grow_,
    halves,
    head_growth,
    probe_loss,
    record_,
    score_growths,
)
from ...growth.choice.block_gains import places_of_blocks
from ...growth.choice.natural_step import columns_of
from ...growth.operators import HEAD_OPERATORS, NEURON_OPERATORS, OPERATORS, SCALED
from ...growth.records.block_records import blocks_with
from ...growth.rows import find_site
from ...growth.surgery.head_drafts import find_attention
from ...models.blocks import block_paths
from ...models.heads import heads_of
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.sites import Place
from ..checks.model_checks import check_growable
from ..distributed import Replicas
from .measuring import try_step
from .probe import event_seed, private_randomness


def random_event_(
    model: nn.Module,
    optimizer: Optimizer | None,
    batches: Sequence[Any],
    config: GrowthConfig,
    like: GrowthEvent | None,
    *,
    event: int,
    loss: Loss,
    step: int | None = None,
    epoch: float | None = None,
) -> GrowthEvent:
    """
    One event that grows as many neurons of every linear, by the same operators, as another model's event, at random.

    The neurons are drawn without repetition, the directions are random and of the size that the operator asks for:
    units with a gain have pre-activations with a root mean square of 1 on the probe, as those that curvature chose.
    They move at once by the natural step that fits them, as those of the other model, which leaves out splits that
    would not lower the loss. Heads are random ones, or new, with random rows and steps; blocks come anywhere.

    Args:
        model (`nn.Module`): The model, of the shapes that the other one had before its event; in one process.
        optimizer (`Optimizer`, *optional*): What trains it.
        batches (`Sequence`): The probe batches.
        config ([`GrowthConfig`]): Gives the seed.
        like ([`GrowthEvent`], *optional*): The event of the other model; nothing grows if it is `None` or empty.
        event (`int`): Index of the event, from 0.
        loss (`Callable`): Maps model and batch to the mean loss.
        step, epoch (*optional*): For the record.

    Returns:
        [`GrowthEvent`]: The record, which is also the last event of the model's history.
    """
    inner, seed = check_growable(model), event_seed(config, event)
    layers = like.layers if like is not None else []
    blocks: tuple[NewBlock, ...] = ()
    if like is not None and like.blocks:
        blocks, now = _blocks_at_random(inner, like, seed)
        places = [Place.parse(layer["linear"]) for layer in layers]
        layers = [
            layer | {"linear": place.within(now[place.block])} for layer, place in zip(layers, places, strict=True)
        ]
    with private_randomness(seed):
        report = None
        units = {layer["linear"] for layer in layers if OPERATORS[layer["operator"]].kind == "gain"}
        if units:
            report = analyze_curvature(inner, batches, ("random",), loss=loss, linears=sorted(units), seed=seed)
        growths = tuple(_at_random(inner, layers, report, seed))
        plan = GrowthPlan(growths, criterion="random", seed=config.growth_seed, blocks=blocks)
        plan = stepped_at_random(inner, plan, batches, config, loss)
        done = grow_(
            inner, plan, optimizer, step=step, epoch=epoch, loss_before=report.loss if report is not None else None
        )
        if plan:
            done.loss_after = probe_loss(inner, batches, loss)
            record_(inner, done)
    return done


def stepped_at_random(
    model: Any, plan: GrowthPlan, batches: Sequence[Any], config: GrowthConfig, loss: Loss
) -> GrowthPlan:
    """A plan of random neurons with the natural step that fits them, as far as held-out samples gain by it."""
    moving = [growth for growth in plan.growths if growth.operator in NEURON_OPERATORS and growth.operator in SCALED]
    if not moving:
        return plan
    choosing, judging = halves(batches)
    scores = score_growths(model, moving, choosing, judging, loss=loss)
    tried = replace(plan, growths=tuple(moving))
    trial = try_step(
        model, tried, columns_of(scores), judging, config, before=scores.loss, loss=loss, replicas=Replicas()
    )
    done = trial.step(tried, config)
    return replace(done, growths=(*done.growths, *(growth for growth in plan.growths if growth not in moving)))


def _blocks_at_random(
    model: GrowablePreTrainedModel, like: GrowthEvent, seed: int
) -> tuple[tuple[NewBlock, ...], dict[str, str]]:
    """As many new blocks behind others, and where the blocks are now that the other event names by later numbers."""
    paths, blocks = block_paths(model.base_model, model.config), like.new_blocks
    generator = torch.Generator().manual_seed(seed % 2**63)
    drawn: list[NewBlock] = []
    for (how, scale), count in Counter((block.how, block.scale) for block in blocks).items():
        fitting, number = places_of_blocks(model, None, how)  # of some models several come at a time
        for place in torch.randint(len(fitting), (count // number,), generator=generator).tolist():
            drawn += [NewBlock(fitting[place], how, scale=scale)] * number
    later = blocks_with(paths, model.shapes(), blocks)
    return tuple(sorted(drawn, key=lambda block: paths.index(block.after))), dict(zip(later, paths, strict=False))


def _at_random(
    model: Any, layers: Sequence[dict[str, Any]], report: CurvatureReport | None, seed: int
) -> list[LayerGrowth]:
    generator = torch.Generator().manual_seed(seed % 2**63)
    unused: dict[str, list[int]] = {}  # a neuron grows by one operator in an event
    growths = []
    for layer in layers:
        path, operator, count = layer["linear"], layer["operator"], layer["chosen"]
        if operator in HEAD_OPERATORS:
            growths.append(_heads_at_random(model, path, operator, count, seed % 2**31))
            continue
        if path not in unused:
            size = find_site(model, path).module.neurons
            unused[path] = torch.randperm(size, generator=generator).tolist()
        neurons, unused[path] = sorted(unused[path][:count]), unused[path][count:]
        along: dict[str, Any] = {}
        drawn = report.get(path, "random") if report is not None else None
        if drawn is not None and OPERATORS[operator].kind == "gain":
            along = {"directions": drawn.direction[neurons].float(), "steps": 1.0 / drawn.response[neurons].float()}
        growths.append(LayerGrowth.by_hand(model, path, operator, neurons, seed=seed % 2**63, **along))
    return growths


def _heads_at_random(model: GrowablePreTrainedModel, path: str, operator: str, count: int, seed: int) -> LayerGrowth:
    """New heads, or splits of random ones, with random rows and steps."""
    heads: int | list[int] = count
    if OPERATORS[operator].copies:
        number = heads_of(model.base_model)[find_attention(model, path).root]
        heads = torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return head_growth(model, path, heads, operator.partition("_")[0], seed=seed)
