"""Language models at equal seconds: uniform ones, and ones that begin shallow and get their blocks on the way."""

import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from hf_saddle import growable, insert_blocks_
from hf_saddle.demo.text import train_tokenizer
from hf_saddle.growth import GrowthConfig, count_parameters

from .files import results
from .training import WAYS, constant, pace, summary, train_step_


LENGTH, BATCH, VOCABULARY, WIDTH = 128, 8, 512, 128
DEPTHS = (2, 4, 8)
REFERENCE = 4  # blocks, of the model that others are timed in turns with
STEPS = 3_000  # of the deepest model
WARMUP, LEAST = 0.02, 0.02  # share of the budget, and of the peak of the learning rate
CURVE_POINTS = 20
PROBE = 128  # passages, of an event of growth


def modules() -> list[Path]:
    """The modules of Python's standard library, without its tests, in an order that is the same everywhere."""
    root = Path(sysconfig.get_paths()["stdlib"])
    without = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
    files = sorted(file for file in root.rglob("*.py") if not without & set(file.relative_to(root).parts))
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    return [files[index] for index in order]


@cache
def sources() -> dict[str, Tensor]:
    """
    The modules of Python's standard library as tokens `(n,)`, one file after the other: `validation` and `test` are
    each a tenth of the files, `train` is the rest, from which the tokenizer takes its merges.
    """
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in modules()]
    part = len(texts) // 10
    tokenizer = train_tokenizer(texts[2 * part : 3 * part], VOCABULARY, enclose=False)
    return in_tenths(texts, tokenizer)


def in_tenths(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Texts as tokens, one after the other: the first tenth of them is `validation`, the second `test`."""
    part = len(texts) // 10
    tokens = [torch.tensor([*ids, tokenizer.eos_token_id]) for ids in tokenizer(texts)["input_ids"]]
    parts = {"validation": tokens[:part], "test": tokens[part : 2 * part], "train": tokens[2 * part :]}
    return {name: torch.cat(part) for name, part in parts.items()}


def copied_(
    model: Any, optimizer: torch.optim.Optimizer, seed: int, event: int, step: int, copies: int = 1, how: str = "stack"
) -> dict[str, Any]:
    """Every block gets copies, one behind the other, that begin as `how` of `insert_blocks_` says."""
    after = [block for block in range(model.config.num_hidden_layers) for _ in range(copies)]
    insert_blocks_(model, after=after, how=how, optimizer=optimizer)
    return {}


def grown_(
    model: Any,
    optimizer: torch.optim.Optimizer,
    seed: int,
    event: int,
    step: int,
    growth: dict[str, Any],
    way: str = "measured",
) -> dict[str, Any]:
    """An event of `GrowthConfig(**growth)`, measured or at random in the same linears, on passages of its own."""
    config = GrowthConfig(growth_seed=seed, probe_samples=PROBE, probe_batch_size=BATCH, **growth)
    passages = islice(random_passages(sources()["train"], 7_000 + 100 * seed + event), PROBE // BATCH)
    return summary(WAYS[way](model, optimizer, list(passages), config, event=event, step=step))


@dataclass(frozen=True)
class LanguageArm:
    """
    A Llama 64 wide, trained for a number of seconds.

    Args:
        name (`str`): Unique in the experiment.
        blocks (`int`): Number of blocks at the start.
        width (`int`): Of the MLPs at the start.
        events (`tuple[float, ...]`): Shares of the seconds at which it grows.
        event_ (`Callable`): What happens then, to model, optimizer, `seed`, number of the event and step.
        timed (`bool`): Whether its steps are timed in the run, in turns with those of the uniform model.
        rate (`float`): Learning rate between warm-up and decay.
        share (`float`): Seconds that may be spent, as a share of those that the deepest model takes for `STEPS` steps.
    """

    name: str
    blocks: int
    width: int = WIDTH
    events: tuple[float, ...] = ()
    event_: Callable[..., dict[str, Any]] = copied_
    timed: bool = False
    rate: float = 4e-3
    share: float = 1.0


def make_llama(seed: int, blocks: int, vocabulary: int = VOCABULARY, width: int = WIDTH) -> Any:
    """A growable Llama from scratch."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        vocab_size=vocabulary,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    return growable(LlamaForCausalLM(config)).train()


def parameter_groups(model: Any) -> list[dict[str, Any]]:
    """Norms do not decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]


def make_optimizer(model: Any) -> torch.optim.Optimizer:
    """AdamW."""
    return torch.optim.AdamW(parameter_groups(model), betas=(0.9, 0.95), fused=True)


def passages(tokens: Tensor, starts: Tensor) -> dict[str, Tensor]:
    """Arguments of the model for the passages that begin at `starts`."""
    ids = tokens[starts[:, None] + torch.arange(LENGTH)]
    return {"input_ids": ids, "labels": ids}


def random_passages(tokens: Tensor, seed: int) -> Iterator[dict[str, Tensor]]:
    """Batches for ever, in an order that depends on the seed alone, so that arms are paired."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    while True:
        yield passages(tokens, torch.randint(len(tokens) - LENGTH, (BATCH,), generator=generator))


@torch.no_grad()
def mean_loss(model: Any, tokens: Tensor, count: int | None = None) -> float:
    """In nats per token, over passages at even distances; all that do not overlap if None."""
    total = 0.0
    starts = torch.linspace(0, len(tokens) - LENGTH - 1, count or len(tokens) // LENGTH, dtype=torch.float64).long()
    model.eval()
    for part in starts.split(64):
        total += float(model(**passages(tokens, part)).loss) * len(part)
    model.train()
    return total / len(starts)


def schedule(share: float) -> float:
    """Learning rate relative to its peak: warm-up, constant, linear decay to 2 %."""
    return constant(share, WARMUP, LEAST)


def run_timing(seed: int, repeats: int = 25) -> dict[str, Any]:
    """Seconds of processor time of a step for every depth, all depths in turn: the median of the repeats."""
    torch.set_num_threads(1)
    batches = random_passages(sources()["train"], seed)
    models = {blocks: make_llama(seed, blocks) for blocks in DEPTHS}
    optimizers = {blocks: make_optimizer(model) for blocks, model in models.items()}
    seconds: dict[int, list[float]] = {blocks: [] for blocks in DEPTHS}
    for _ in range(repeats):
        batch = next(batches)
        for blocks, model in models.items():
            started = time.process_time()
            train_step_(model, optimizers[blocks], batch, 1e-3)
            seconds[blocks].append(time.process_time() - started)
    return {"seconds": {str(blocks): median(values) for blocks, values in seconds.items()}}


@cache
def seconds_of_a_step() -> dict[int, float]:
    """What the runs of `language_timing` found, so that a busy machine changes no budget."""
    rows = results("language_timing")
    return {blocks: fmean(row["seconds"][str(blocks)] for row in rows) for blocks in DEPTHS}


class Timed(NamedTuple):
    """What the run of a model of its own shape counts."""

    cost: float  # seconds of a step
    unit: float  # what a second of the processor counts as, 1 on a machine as quiet as in `language_timing`


def timed(model: Any) -> Timed:
    """Steps of the model against those of the uniform one with four blocks, whose price is known."""
    with torch.random.fork_rng(devices=[]):
        reference = make_llama(0, REFERENCE)
    batch, price = next(random_passages(sources()["train"], 0)), seconds_of_a_step()[REFERENCE]
    found = pace(model, reference, batch, parameter_groups)
    return Timed(found.ratio * price, price / found.seconds)


def run_language(arm: LanguageArm, seed: int, steps: int = STEPS, *, test: bool = False) -> dict[str, Any]:
    """
    Train one arm for the seconds in which the deepest model takes `steps` steps.

    Returns:
        `dict`: What is known of the run, fit for JSON. `seconds` are those that count: steps at their measured times,
        and the processor time of growing.
    """
    torch.set_num_threads(1)
    started, price, splits = time.process_time(), seconds_of_a_step(), sources()
    budget = arm.share * steps * price[DEPTHS[-1]]
    model = make_llama(seed, arm.blocks, width=arm.width)
    optimizer, batches = make_optimizer(model), random_passages(splits["train"], seed)
    start, cost = count_parameters(model), timed(model).cost if arm.timed else price[arm.blocks]
    spent, step, growing = 0.0, 0, 0.0
    events: list[dict[str, Any]] = []
    curve: list[dict[str, float]] = []
    while (share := spent / budget) < 1:
        if share >= (len(curve) + 1) / CURVE_POINTS:
            curve.append({"share": share, "step": step, "loss": mean_loss(model, splits["validation"], 128)})
        if len(events) < len(arm.events) and share >= arm.events[len(events)]:
            before = time.process_time()
            event = arm.event_(model, optimizer, seed, len(events), step)
            took = time.process_time() - before
            if arm.timed:
                cost, unit = timed(model)
                took *= unit
            else:
                cost = price[model.config.num_hidden_layers]
            spent, growing = spent + took, growing + took
            events.append(event | {"share": share, "cost": took, "step_seconds": cost})
        train_step_(model, optimizer, next(batches), arm.rate * schedule(share))
        spent, step = spent + cost, step + 1
    result = {
        "rate": arm.rate,
        "steps": step,
        "start": start,
        "parameters": count_parameters(model),
        "seconds": spent,
        "growth_seconds": growing,
        "process_seconds": time.process_time() - started,
        "events": events,
        "curve": curve,
        "validation": {"loss": mean_loss(model, splits["validation"], 1_024)},
    }
    return result | ({"test": {"loss": mean_loss(model, splits["test"])}} if test else {})
