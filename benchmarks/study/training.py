"""One run: a model trained from scratch until a budget is spent, growing on the way or not."""

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_saddle.growth import GrowthEvent, PaperGrowthConfig, count_macs, count_parameters
from hf_saddle.training import growth_event_

from .aftercare import own_rate_, tried_event_
from .baselines import even_event_, stacked_event_, uneven_event_
from .gromo_arm import gromo_event_
from .matched import matched_event_
from .probe import macs_of_an_event, probe
from .rankings import several_event_, significant_event_
from .task import TASKS, Split, evaluate, evaluate_each, make_model, shape


BATCH = 128
WARMUP = 0.05  # share of the compute
DECAY = 0.3  # likewise, of a rate that was constant
CURVE_POINTS = 10
# A backward pass costs two forward passes, and a multiply-accumulate counts as one operation.
PASSES = 3
# What a step costs is measured against this model, the large one.
REFERENCE = shape(64)
# Fields of the `GrowthConfig`: as many units as there may be, whether they pay at once or not, and at rest.
FILLED: dict[str, Any] = {"selection": "gain", "significance": 0.0, "natural_step": 0.0}
# What growth changes in a config.
GROWN_FIELDS = ("widths", "skip_sizes", "skip_unit", "heads", "num_hidden_layers")
# As curvature says; as many random neurons in the same linears; by baselines that measure nothing; by GroMo; by other
# rankings.
WAYS: dict[str, Callable[..., GrowthEvent]] = {
    "measured": growth_event_,
    "matched": matched_event_,
    "stacked": stacked_event_,
    "even": even_event_,
    "uneven": uneven_event_,
    "gromo": gromo_event_,
    "significant": significant_event_,
    "several": several_event_,
}


@dataclass(frozen=True)
class Arm:
    """
    A way to spend a budget of compute or of steps.

    Args:
        name (`str`): Unique in an experiment.
        shape (`dict`): Fields of the `SaddleViTConfig` at the start.
        budget (`float`): What may be spent, in `unit`.
        unit (`str`):
            `"macs"`, multiply-accumulates with the analysis of growth events; `"steps"`; or `"seconds"`, those with
            the whole events in units of a step of the reference, see [`paced`].
        learning_rate (`float`): Peak of the schedule, a cosine of the spent share of the budget.
        events (`Sequence[float]`): Shares of the budget at which the model grows.
        growth (`dict`): Fields of the `PaperGrowthConfig`.
        test (`bool`): Whether the test split is read at the end. Only for arms whose options are decided.
        task (`str`): One of `TASKS`.
        way (`str`): How the model grows, one of `WAYS`.
        tried (`int`): Steps that each of several plans is tried for before one of them grows, whatever `way` says; 0
            if there is but one. Counts in seconds only.
        newcomers (`float`): Learning rate of new parameters over that of all others.
        rewarm (`float`): Share of the budget over which the learning rate rises again from 0 after an event.
        decay (`str`): How the learning rate falls, one of `DECAYS`.
        reference (`dict`): Fields of the config of the model whose steps are the unit of seconds.
    """

    name: str
    shape: dict[str, Any]
    budget: float
    unit: str = "macs"
    learning_rate: float = 4e-3
    events: Sequence[float] = ()
    growth: dict[str, Any] = field(default_factory=dict)
    test: bool = False
    task: str = "fashion-mnist"
    way: str = "measured"
    tried: int = 0
    newcomers: float = 1.0
    rewarm: float = 0.0
    decay: str = "cosine"
    reference: dict[str, Any] = field(default_factory=lambda: REFERENCE)


def run(arm: Arm, seed: int) -> dict[str, Any]:
    """
    Train one arm.

    Returns:
        `dict`: What is known of the run, fit for JSON.
    """
    torch.set_num_threads(1)
    splits = TASKS[arm.task]()
    started = time.process_time()
    model = make_model(seed, arm.shape).train()
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=arm.learning_rate, betas=(0.9, 0.98), fused=True)
    config = PaperGrowthConfig(at=list(arm.events), growth_seed=seed, **arm.growth) if arm.events else None
    start = {"parameters": count_parameters(model), "macs": count_macs(model)}
    batches = training_batches(splits["train"], seed)
    macs, total, step, growth_macs, growth_seconds = start["macs"], 0.0, 0, 0.0, 0.0
    timed = arm.unit == "seconds"
    spent = 0.0  # in steps of the reference
    price = paced(model, splits["train"], arm.reference).ratio if timed else 1.0
    curve: list[dict[str, float]] = []
    events: list[dict[str, Any]] = []
    while (share := {"macs": total, "steps": step, "seconds": spent}[arm.unit] / arm.budget) < 1:
        if share >= (len(curve) + 1) / CURVE_POINTS:
            curve.append({"share": share, "step": step, "macs": total} | evaluate(model, splits["validation"]))
        if config is not None and len(events) < len(arm.events) and share >= arm.events[len(events)]:
            before, own = time.process_time(), WAYS[arm.way]
            if arm.tried:
                own = partial(tried_event_, **trial(arm, splits["train"], config, seed, len(events), share))
            known = {name for name, _ in model.named_parameters()}
            event = grow(model, optimizer, splits["train"], config, seed, len(events), step, own)
            if arm.newcomers != 1:
                own_rate_(model, optimizer, known, arm.newcomers)
            took = time.process_time() - before
            counted = not timed and arm.way in ("measured", "matched")
            cost = macs_of_an_event(config, event) if counted else 0.0
            events.append(summary(event) | {"share": share, "macs": cost})
            growth_seconds += took
            if timed:
                found = paced(model, splits["train"], arm.reference)
                price, spent = found.ratio, spent + took / found.seconds
                events[-1] |= {"pace": found.ratio, "cost": took / found.seconds}
            total, growth_macs, macs = total + cost, growth_macs + cost, event.macs_after
        rate = arm.learning_rate * DECAYS[arm.decay](share)
        if events and arm.rewarm:
            rate *= min((share - events[-1]["share"]) / arm.rewarm, 1.0)
        train_step_(model, optimizer, next(batches), rate)
        step, total, spent = step + 1, total + PASSES * macs * BATCH, spent + price
    validation = evaluate(model, splits["validation"])
    curve.append({"share": 1.0, "step": step, "macs": total} | validation)
    fields = model.config.to_dict()
    result = {
        "arm": arm.name,
        "seed": seed,
        "learning_rate": arm.learning_rate,
        "steps": step,
        "total_macs": total,
        "start": start,
        "parameters": count_parameters(model),
        "macs": macs,
        "shape": arm.shape | {name: fields[name] for name in GROWN_FIELDS if name in fields},
        "validation": validation,
        "curve": curve,
        "events": events,
        "growth_macs": growth_macs,
        "growth_seconds": growth_seconds,
        "seconds": time.process_time() - started,
    }
    if timed:
        result["pace"] = price
    if arm.test:
        result["test"] = evaluate_each(model, splits["test"])
    return result


class Pace(NamedTuple):
    """How long steps take."""

    ratio: float  # a step of the model over one of the reference
    seconds: float  # of processor time, a step of the reference


def paced(model: nn.Module, split: Split, reference: dict[str, Any]) -> Pace:
    """The pace of the model against one of the config with these fields."""
    with torch.random.fork_rng(devices=[]):
        other = make_model(0, reference).train()
    return pace(model, other, split.batch(torch.arange(BATCH)), parameter_groups)


def pace(
    model: nn.Module,
    reference: nn.Module,
    batch: dict[str, Tensor],
    groups: Callable[[nn.Module], list[dict[str, Any]]],
    rounds: int = 25,
) -> Pace:
    """Time steps of a copy of the model and of a reference, in turns, with AdamW on `groups`; medians count."""
    models = (copy.deepcopy(model), reference)
    optimizers = [torch.optim.AdamW(groups(each), lr=0.0, fused=True) for each in models]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for each, optimizer, found in zip(models, optimizers, seconds, strict=True):
            started = time.process_time()
            train_step_(each, optimizer, batch, 0.0)
            found.append(time.process_time() - started)
    own, reference = map(median, seconds)
    return Pace(own / reference, reference)


def train_step_(model: nn.Module, optimizer: Optimizer, batch: dict[str, Tensor], rate: float) -> None:
    """One step at a learning rate, for groups with a `factor` at so many times it; gradients have norm 1 at most."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    model(**batch).loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def parameter_groups(model: nn.Module, weight_decay: float = 0.05) -> list[dict[str, Any]]:
    """Weights with decay; biases, norms, gains, tokens and positions without."""
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1 and "embeddings" not in name]
    known = set(decayed)
    others = [p for p in model.parameters() if p not in known]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def schedule(share: float) -> float:
    """Learning rate relative to its peak: linear warm-up, then a cosine to 1 % of the peak."""
    if share < WARMUP:
        return max(share / WARMUP, 0.01)
    rest = min((share - WARMUP) / (1 - WARMUP), 1.0)
    return 0.01 + 0.99 * 0.5 * (1 + float(torch.cos(torch.tensor(rest * torch.pi))))


def constant(share: float, warmup: float = WARMUP, least: float = 0.01) -> float:
    """The same with a constant rate that falls linearly to the `least` at the end of the budget."""
    if share < warmup:
        return max(share / warmup, 0.01)
    return min(1.0, max(least, (1 - share) / DECAY))


DECAYS: dict[str, Callable[[float], float]] = {"cosine": schedule, "constant": constant}


def trial(arm: Arm, split: Split, config: PaperGrowthConfig, seed: int, event: int, share: float) -> dict[str, Any]:
    """How plans are tried at an event: steps at the rate of the moment, all on the same images, and who judges."""

    def train_(model: nn.Module, optimizer: Optimizer) -> None:
        batches = training_batches(split, 9_000 + 100 * seed + event)
        for _ in range(arm.tried):
            train_step_(model, optimizer, next(batches), arm.learning_rate * DECAYS[arm.decay](share))

    candidates = ({}, {"criterion": "width"} | FILLED)  # the options as they are, or splits alone
    return {"candidates": candidates, "train_": train_, "judges": probe(split, config, seed, 50 + event)}


def training_batches(split: Split, seed: int, size: int = BATCH) -> Iterator[dict[str, Tensor]]:
    """Batches for ever, in an order that depends on the seed alone, so that arms are paired."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    while True:
        order = torch.randperm(len(split), generator=generator)
        for indices in order[: len(order) // size * size].split(size):
            yield split.batch(indices, generator)


def grow(
    model: Any,
    optimizer: Optimizer,
    split: Split,
    config: PaperGrowthConfig,
    seed: int,
    event: int,
    step: int,
    grow_event_: Callable[..., GrowthEvent] = growth_event_,
) -> GrowthEvent:
    """One event on a probe of its own."""
    return grow_event_(model, optimizer, probe(split, config, seed, event), config, event=event, step=step)


def summary(event: GrowthEvent) -> dict[str, Any]:
    """What the study keeps of an event."""
    names = ("step", "loss_before", "loss_after", "predicted_gain", "parameters_before", "parameters_after", "seconds")
    chosen: dict[str, int] = {}
    for layer in event.layers:
        key = f"{layer['linear'].removeprefix('vit.layers.')}:{layer['operator']}"
        chosen[key] = chosen.get(key, 0) + layer["chosen"]
    for block in event.blocks:
        key = f"{block['after']}:block_{block['how']}"
        chosen[key] = chosen.get(key, 0) + 1
    return json.loads(json.dumps({name: getattr(event, name) for name in names} | {"chosen": chosen}))
