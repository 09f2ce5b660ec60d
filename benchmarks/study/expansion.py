"""One run of expansion: a trained language model goes on with new text, in equal seconds; does it forget the old?"""

import copy
import time
from collections.abc import Callable
from functools import cache, lru_cache, partial
from statistics import fmean, median
from typing import Any, NamedTuple

import torch

from hf_saddle import insert_blocks_
from hf_saddle.growth import GrowthConfig, GrowthEvent, count_parameters
from hf_saddle.training import growth_event_

from .backbone import optional
from .expansion_task import BASE_STEPS, VOCABULARY, base, losses, losses_before, passages, train_
from .files import results
from .language import BATCH, make_llama, make_optimizer
from .matched import matched_event_
from .training import train_step_


STEPS = 300  # of full fine-tuning, which everything else is given the seconds of
NEW_BLOCKS = 2
RANK = 19  # of LoRA on all linears: as many parameters as two blocks, to 0.6 %
PROBE = 64  # passages
# Without a threshold of significance the budget is spent to the end, so that the arms have equal sizes.
GROWTH = {"criterion": "depth", "operator": "zero_gain", "significance": 0.0, "selection": "gain"}


def whole_(model: Any, seed: int) -> None:
    """All that there is goes on training."""


def blocks_(model: Any, seed: int) -> None:
    """Silent copies of blocks, which alone are trained (LLaMA-Pro, arXiv 2401.02415)."""
    insert_blocks_(model, after="even", number=NEW_BLOCKS, how="copy", freeze=True)


def grown_(model: Any, seed: int, event_: Callable[..., GrowthEvent] = growth_event_) -> None:
    """Units of as many parameters as the new blocks have, measured on the new text, which alone are trained."""
    limit = count_parameters(model) + new_parameters()
    config = GrowthConfig(max_parameters=limit, probe_samples=PROBE, growth_seed=seed, at=[0.5], **GROWTH)
    event_(model, None, passages("new", 1_000 + seed, PROBE // BATCH), config, event=0, step=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".skip." in name)


@cache
def new_parameters() -> int:
    """Parameters of the new blocks."""
    return NEW_BLOCKS * count_parameters(make_llama(0, 1, VOCABULARY).model.layers[0])


def lora_(model: Any, seed: int) -> None:
    """Adapters of PEFT beside all linears of the blocks."""
    peft = optional("peft")
    torch.manual_seed(seed)
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=linears, lora_dropout=0.0, bias="none")
    peft.inject_adapter_in_model(config, model)


FULL, EXPANDED, GROWN, RANDOM = "full fine-tuning", "block expansion", "growth", "random in the same linears"
LORA, SLOWLY = "LoRA", "full fine-tuning, small rate"
ARMS: dict[str, Callable[[Any, int], None]] = {
    FULL: whole_,
    EXPANDED: blocks_,
    GROWN: grown_,
    RANDOM: partial(grown_, event_=matched_event_),
    LORA: lora_,
}


@lru_cache(maxsize=1)
def expanded(arm: str, seed: int, base_steps: int) -> Any:
    """What an arm begins its training as; the same for all learning rates."""
    model = copy.deepcopy(base(seed, base_steps))
    ARMS[arm](model, seed)
    return model


def run_timing(seed: int, base_steps: int = 50, repeats: int = 15) -> dict[str, Any]:
    """Seconds of processor time of a step of every arm, all in turns, the median of the repeats; and of expanding."""
    torch.set_num_threads(1)
    base(seed, base_steps)
    models: dict[str, Any] = {}
    expanding: dict[str, float] = {}
    for name in ARMS:
        started = time.process_time()
        models[name] = expanded(name, seed, base_steps)
        expanding[name] = time.process_time() - started
    optimizers = {name: make_optimizer(model) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for batch in passages("new", seed, repeats):
        for name, model in models.items():
            started = time.process_time()
            train_step_(model, optimizers[name], batch, 1e-3)
            seconds[name].append(time.process_time() - started)
    return {"arms": {name: {"expanding": expanding[name], "step": median(seconds[name])} for name in ARMS}}


class Price(NamedTuple):
    """Seconds of processor time."""

    expanding: float
    step: float


@cache
def prices() -> dict[str, Price]:
    """What the runs of `expansion_timing` found; the random control, which is planned by curvature, pays as growth."""
    rows = [row["arms"] for row in results("expansion_timing")]
    found = {
        name: Price(*(fmean(row[name][what] for row in rows) for what in ("expanding", "step"))) for name in rows[0]
    }
    return found | {RANDOM: found[GROWN]}


def run_expansion(
    arm: str, rate: float, seed: int, steps: int = STEPS, base_steps: int = BASE_STEPS, *, test: bool = False
) -> dict[str, Any]:
    """
    Expand the trained model by one of `ARMS` and train it on the new text.

    Args:
        arm (`str`): One of `ARMS`.
        rate (`float`): Learning rate between warm-up and decay.
        seed (`int`): Of the trained model, the order of the data, and all that is drawn.
        steps (`int`, *optional*, defaults to `STEPS`): Steps of full fine-tuning in whose seconds the arm trains.
        base_steps (`int`, *optional*, defaults to `BASE_STEPS`): Steps of the model that is expanded.
        test (`bool`, *optional*, defaults to `False`): Whether the test split is read, and not the validation split.

    Returns:
        `dict`: What is known of the run, fit for JSON. `seconds` are those that count: steps at their measured times,
        and the expansion with its measurements.
    """
    torch.set_num_threads(1)
    started, split, price = time.process_time(), "test" if test else "validation", prices()[arm]
    own = max(1, int((steps * prices()[FULL].step - price.expanding) / price.step))
    before = losses_before(seed, base_steps, split)
    model = copy.deepcopy(expanded(arm, seed, base_steps))
    train_(model, "new", own, rate, seed)
    after = losses(model, split)
    return {
        "rate": rate,
        "steps": own,
        "parameters": count_parameters(model),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": own * price.step + price.expanding,
        "expanding_seconds": price.expanding,
        "process_seconds": time.process_time() - started,
        "before": before,
        split: after | {"forgetting": after["old"] - before["old"]},
    }
