"""One run of fine-tuning: a frozen backbone with a new head, and what else a method trains, at equal steps."""

import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_saddle.growth import PaperGrowthConfig, count_parameters

from .backbone import optional
from .finetuning_task import STEPS, backbone_of, budget, held_out, names_of, training_data
from .probe import macs_of_an_event
from .ranks import ranks_of
from .task import evaluate
from .training import grow, schedule, summary


WARM = 0.1  # share of the steps in which the head is trained alone
# Peak learning rate of the head in all runs.
HEAD_RATE = 1e-2


@dataclass(frozen=True)
class Method:
    """
    What is trained besides the head, once that has been trained alone.

    Args:
        lora (`tuple[int | str, tuple[str, ...]]`, *optional*): Rank and linears of LoRA adapters; as the rank
            `"adaptive"`, which is AdaLoRA, or how `ranks_of` shares the budget among the linears.
        growth (`dict`): Fields of the `PaperGrowthConfig` by which the model grows, if any.
        events (`Sequence[float]`): Shares of the steps at which it grows, the first of them `WARM`.
        everything (`bool`): Whether the backbone is trained too.
    """

    lora: tuple[int | str, tuple[str, ...]] | None = None
    growth: dict[str, Any] = field(default_factory=dict)
    events: Sequence[float] = (WARM,)
    everything: bool = False


@dataclass
class State:
    """A model in training, with all that belongs to it."""

    task: str
    model: Any
    optimizer: torch.optim.Optimizer
    config: PaperGrowthConfig | None
    step: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    growth_seconds: float = 0.0
    adaptive: Any = None  # AdaLoRA, which moves rank between linears after a step
    ranks: dict[str, int] = field(default_factory=dict)
    step_macs: float = 0.0


EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
CURVATURE = {
    "criterion": "depth",
    "operator": "zero_gain",
    "directions": "eigenvectors",
    "probe_samples": 1_024,
    "probe_batch_size": 256,
    "selection": "gain",
    "natural_step": 0.0,
}
WHITENED = CURVATURE | {"directions": "whitened"}
# Random growth takes nothing but the scale of its units from the probe.
RANDOM = CURVATURE | {"criterion": "random", "probe_samples": 256}
# As in `experiments.py`: the recorded runs took a line search instead.
SEARCH = {"natural_step": 0.5, "probe_samples": 512}
QUERY_VALUE = {"linears": ["attention.q_proj", "attention.v_proj"]}
METHODS = {
    "head only": Method(),
    "LoRA on q and v": Method(lora=(9, ("q_proj", "v_proj"))),
    "LoRA on all linears": Method(lora=(2, EVERY_LINEAR)),
    "LoRA, ranks by curvature": Method(lora=("curvature", EVERY_LINEAR)),
    "LoRA, ranks by curvature, exchanged": Method(lora=("exchanged", EVERY_LINEAR)),
    "LoRA, ranks by gradient": Method(lora=("gradient", EVERY_LINEAR)),
    "LoRA on q and v, ranks by curvature": Method(lora=("curvature", ("q_proj", "v_proj"))),
    "AdaLoRA": Method(lora=("adaptive", EVERY_LINEAR)),
    "zero gain": Method(growth=CURVATURE),
    "zero gain, random": Method(growth=RANDOM),
    "zero gain, whitened": Method(growth=WHITENED),
    "zero gain, whitened, line search": Method(growth=WHITENED | SEARCH),
    "zero gain, random, line search": Method(growth=RANDOM | SEARCH),
    "zero gain on q and v, whitened, line search": Method(growth=WHITENED | SEARCH | QUERY_VALUE),
    "zero gain on q and v, random, line search": Method(growth=RANDOM | SEARCH | QUERY_VALUE),
    "zero gain, whitened, three events": Method(growth=WHITENED, events=(WARM, 0.25, 0.4)),
    "everything": Method(everything=True),
    "zero gain, whitened, and everything": Method(growth=WHITENED, everything=True),
}


def run(
    name: str, rate: float, seed: int, test: bool, head_rate: float = HEAD_RATE, task: str = "fashion-mnist"
) -> dict[str, Any]:
    """
    Train by one of `METHODS`.

    Args:
        name (`str`): The method.
        rate (`float`): Peak learning rate of all that is trained besides the head.
        seed (`int`): Of the training set, the order of the data, and all that is drawn.
        test (`bool`): Whether the test split is read at the end, and not the validation split.
        head_rate (`float`, *optional*, defaults to `HEAD_RATE`): Peak learning rate of the head.
        task (`str`, *optional*, defaults to `"fashion-mnist"`): That, `"digits"` or `"glosses"`.

    Returns:
        `dict`: What is known of the run, fit for JSON.
    """
    torch.set_num_threads(1)
    method, state = METHODS[name], copy.deepcopy(started(name, seed, head_rate, task))
    for share in method.events[1:]:
        train_(state, round(share * STEPS), rate, seed)
        adapt_(state, method, seed)
    train_(state, STEPS, rate, seed)
    split, model = "test" if test else "validation", state.model
    return {
        "rate": rate,
        "head_rate": head_rate,
        "steps": state.step,
        "parameters": count_parameters(model),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "head": count_parameters(model.classifier),
        "step_macs": state.step_macs,
        "events": state.events,
        "ranks": state.ranks,
        "growth_macs": sum(event["macs"] for event in state.events),
        "growth_seconds": state.growth_seconds,
        "seconds": state.seconds,
        split: evaluate(model, held_out(task, split)),
    }


@lru_cache(maxsize=1)
def started(name: str, seed: int, head_rate: float, task: str) -> State:
    """The model after the training of the head, adapted; the same for all learning rates."""
    method, before = METHODS[name], time.process_time()
    model = backbone_of(task, seed)
    freeze_(model)
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=head_rate, betas=(0.9, 0.98), weight_decay=0.0)
    optimizer.param_groups[0].update(peak=head_rate, start=0.0)
    config = None
    if method.growth:
        size = count_parameters(model) + budget(task)
        config = PaperGrowthConfig(at=list(method.events), max_parameters=size, growth_seed=seed, **method.growth)
    state = State(task, model, optimizer, config, seconds=time.process_time() - before)
    train_(state, round(WARM * STEPS), 0.0, seed)
    adapt_(state, method, seed)
    return state


def train_(state: State, stop: int, rate: float, seed: int) -> None:
    """Train until step `stop`."""
    before, batches = time.process_time(), training_data(state.task, seed)[1]
    groups = state.optimizer.param_groups
    for group in groups[1:]:
        group["peak"] = rate
    while state.step < stop:
        for group in groups:
            share = (state.step / STEPS - group["start"]) / (1 - group["start"])
            group["lr"] = group["peak"] * schedule(share)
        counter = FlopCounterMode(display=False)
        with counter if state.step == STEPS - 1 else nullcontext():
            (state.adaptive or state.model)(**batches[state.step]).loss.backward()
        state.step_macs = counter.get_total_flops() / 2
        nn.utils.clip_grad_norm_((p for group in groups for p in group["params"]), 1.0)
        state.optimizer.step()
        if state.adaptive is not None:
            state.adaptive.update_and_allocate(state.step)
        state.optimizer.zero_grad()
        state.step += 1
    state.seconds += time.process_time() - before


def adapt_(state: State, method: Method, seed: int) -> None:
    """Make what the method trains, and let the optimizer train it on a schedule from now to the end."""
    before, model = time.process_time(), state.model
    if state.config is not None:
        model.requires_grad_(True)  # frozen linears do not grow
        split = training_data(state.task, seed)[0]
        # Before the first event the optimizer holds the head alone, which does not grow.
        follower = state.optimizer if state.events else None
        event = grow(model, follower, split, state.config, seed, len(state.events), state.step)
        state.events.append(summary(event) | {"macs": macs_of_an_event(state.config, event)})
        freeze_(model)
        state.growth_seconds += time.process_time() - before
    if method.lora is not None:
        rank, linears = method.lora[0], names_of(state.task, method.lora[1])
        if rank == "adaptive":
            state.adaptive = add_adalora_(model, linears, seed)
        elif isinstance(rank, str):
            state.ranks = ranks_of(rank, model, linears, training_data(state.task, seed)[0], budget(state.task), seed)
            add_lora_(model, state.ranks, [*state.ranks], seed)
            state.growth_seconds += time.process_time() - before
        else:
            add_lora_(model, rank, linears, seed)
    if method.everything:
        model.requires_grad_(True)
    held = {parameter for group in state.optimizer.param_groups for parameter in group["params"]}
    new = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in held]
    if new:
        state.optimizer.add_param_group({"params": new, "start": state.step / STEPS})
    state.seconds += time.process_time() - before


def freeze_(model: nn.Module) -> None:
    """Freeze all but the head and the units that have grown."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier.") or ".skip." in name)


def add_lora_(model: nn.Module, rank: int | dict[str, int], linears: Sequence[str], seed: int) -> None:
    """Put adapters of PEFT beside linears, which freezes all else, and keep the head in training."""
    peft = optional("peft")
    torch.manual_seed(seed)
    ranks = {} if isinstance(rank, int) else rank
    base = rank if isinstance(rank, int) else 1
    config = peft.LoraConfig(
        r=base,
        lora_alpha=2 * base,
        rank_pattern=ranks,
        alpha_pattern={path: 2 * each for path, each in ranks.items()},
        target_modules=list(linears),
        lora_dropout=0.0,
        bias="none",
    )
    peft.inject_adapter_in_model(config, model)
    model.classifier.requires_grad_(True)


def add_adalora_(model: nn.Module, linears: Sequence[str], seed: int) -> Any:
    """As `add_lora_`, with ranks that AdaLoRA takes from linears that need them least, down to the budget."""
    peft = optional("peft")
    torch.manual_seed(seed)
    steps = round((1 - WARM) * STEPS)
    config = peft.AdaLoraConfig(
        init_r=3,
        target_r=2,
        lora_alpha=6,
        tinit=round(WARM * STEPS + 0.1 * steps),
        tfinal=round(0.5 * steps),
        deltaT=1,
        total_step=STEPS,
        target_modules=list(linears),
        lora_dropout=0.0,
    )
    adaptive = peft.tuners.adalora.AdaLoraModel(model, {"default": config}, "default")
    model.classifier.requires_grad_(True)
    return adaptive
