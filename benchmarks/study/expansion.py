"""One run of expansion: a trained language model goes on with new text, in equal seconds; does it forget the old?"""

import copy
import time
from collections.abc import Callable
from functools import cache, lru_cache, partial
from itertools import islice
from pydoc_data.topics import topics
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_saddle import insert_blocks_
from hf_saddle.demo.text import train_tokenizer
from hf_saddle.growth import GrowthConfig, GrowthEvent, count_parameters
from hf_saddle.training import growth_event_

from .backbone import optional
from .files import results
from .language import in_tenths, make_llama, make_optimizer, mean_loss, modules, random_passages, schedule
from .matched import matched_event_
from .training import train_step_


BLOCKS, VOCABULARY = 4, 1_024
BASE_STEPS, BASE_RATE = 600, 6e-3
STEPS = 300  # of full fine-tuning, which everything else is given the seconds of
NEW_BLOCKS = 2
RANK = 19  # of LoRA on all linears: as many parameters as two blocks, to 0.6 %
PROBE, BATCH = 64, 8  # passages
# Without a threshold of significance the budget is spent to the end, so that the arms have equal sizes.
GROWTH = {"criterion": "depth", "operator": "zero_gain", "significance": 0.0, "selection": "gain"}


@cache
def texts() -> dict[str, dict[str, Tensor]]:
    """
    The `old` text, modules of Python's standard library, and the `new` one, the prose of its documentation, by split
    as tokens `(n,)` of one tokenizer, which takes its merges from as much of the one as of the other.
    """
    files = [file for file in modules() if file.parent.name != "pydoc_data"]  # a module of nothing but the new text
    old = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    # Topics are of very different lengths; in this order each part has about its share of the text, too.
    order = torch.randperm(len(topics), generator=torch.Generator().manual_seed(3)).tolist()
    names = sorted(topics)
    new = [topics[names[index]] for index in order]
    english, code = (split[2 * (len(split) // 10) :] for split in (new, old))
    size = sum(map(len, english))
    tokenizer = train_tokenizer([*english, "".join(code)[:size]], VOCABULARY, enclose=False)
    return {"old": in_tenths(old, tokenizer), "new": in_tenths(new, tokenizer)}


@lru_cache(maxsize=1)
def base(seed: int, steps: int) -> Any:
    """The Llama of four blocks, trained on the old text; the arms of a seed start from copies of it."""
    model = make_llama(seed, BLOCKS, VOCABULARY)
    train_(model, texts()["old"]["train"], steps, BASE_RATE, seed)
    return model


@lru_cache(maxsize=1)
def losses_before(seed: int, steps: int, split: str) -> dict[str, float]:
    """Of the trained model."""
    return losses(base(seed, steps), split)


@lru_cache(maxsize=1)
def expanded(arm: str, seed: int, base_steps: int) -> Any:
    """What an arm begins its training as; the same for all learning rates."""
    model = copy.deepcopy(base(seed, base_steps))
    ARMS[arm](model, seed)
    return model


def train_(model: Any, tokens: Tensor, steps: int, rate: float, seed: int) -> None:
    """Train what is not frozen: warm-up, constant rate, linear decay."""
    optimizer = make_optimizer(model)
    for step, batch in enumerate(islice(random_passages(tokens, seed), steps)):
        train_step_(model, optimizer, batch, rate * schedule(step / steps))


def losses(model: Any, split: str) -> dict[str, float]:
    """In nats per token: `loss` on the new text, `old` on the old one."""
    return {"loss": mean_loss(model, texts()["new"][split]), "old": mean_loss(model, texts()["old"][split], 512)}


def whole_(model: Any, seed: int) -> None:
    """All that there is goes on training."""


def blocks_(model: Any, seed: int) -> None:
    """Silent copies of blocks, which alone are trained (LLaMA-Pro, arXiv 2401.02415)."""
    insert_blocks_(model, after="even", number=NEW_BLOCKS, how="copy", freeze=True)


def grown_(model: Any, seed: int, event_: Callable[..., GrowthEvent] = growth_event_) -> None:
    """Units of as many parameters as the new blocks have, measured on the new text, which alone are trained."""
    limit = count_parameters(model) + new_parameters()
    config = GrowthConfig(max_parameters=limit, probe_samples=PROBE, growth_seed=seed, at=[0.5], **GROWTH)
    passages = random_passages(texts()["new"]["train"], 1_000 + seed)
    event_(model, None, list(islice(passages, PROBE // BATCH)), config, event=0, step=0)
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
LORA = "LoRA"
ARMS: dict[str, Callable[[Any, int], None]] = {
    FULL: whole_,
    EXPANDED: blocks_,
    GROWN: grown_,
    RANDOM: partial(grown_, event_=matched_event_),
    LORA: lora_,
}


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
    for batch in islice(random_passages(texts()["new"]["train"], seed), repeats):
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
    train_(model, texts()["new"]["train"], own, rate, seed)
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
