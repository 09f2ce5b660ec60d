"""Language models at equal seconds: uniform ones, and ones that begin shallow and get their blocks on the way."""

import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from hf_saddle import growable, insert_blocks_
from hf_saddle.demo.text import train_tokenizer
from hf_saddle.growth import count_parameters

from .files import results
from .training import train_step_


LENGTH, BATCH, VOCABULARY = 128, 8, 512
DEPTHS = (2, 4, 8)
STEPS = 3_000  # of the deepest model
WARMUP, DECAY = 0.02, 0.3  # shares of the budget; between them the rate is constant
CURVE_POINTS = 20


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


@dataclass(frozen=True)
class LanguageArm:
    """
    A Llama 64 wide, trained for a number of seconds.

    Args:
        name (`str`): Unique in the experiment.
        blocks (`int`): Number of blocks at the start.
        copies (`tuple[tuple[float, int], ...]`):
            Shares of the seconds at which every block gets so many copies, one behind the other.
        how (`str`): How a new block begins, of `insert_blocks_`.
        rate (`float`): Learning rate between warm-up and decay.
        share (`float`): Seconds that may be spent, as a share of those that the deepest model takes for `STEPS` steps.
    """

    name: str
    blocks: int
    copies: tuple[tuple[float, int], ...] = ()
    how: str = "stack"
    rate: float = 4e-3
    share: float = 1.0


def make_llama(seed: int, blocks: int, vocabulary: int = VOCABULARY) -> Any:
    """A growable Llama from scratch."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        vocab_size=vocabulary,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    return growable(LlamaForCausalLM(config)).train()


def make_optimizer(model: Any) -> torch.optim.Optimizer:
    """AdamW; norms do not decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


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
    if share < WARMUP:
        return max(share / WARMUP, 0.01)
    return min(1.0, max(0.02, (1 - share) / DECAY))


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
    model = make_llama(seed, arm.blocks)
    optimizer, batches, blocks = make_optimizer(model), random_passages(splits["train"], seed), arm.blocks
    start, pending = count_parameters(model), list(arm.copies)
    spent, step, growing = 0.0, 0, 0.0
    curve: list[dict[str, float]] = []
    while (share := spent / budget) < 1:
        if share >= (len(curve) + 1) / CURVE_POINTS:
            curve.append({"share": share, "step": step, "loss": mean_loss(model, splits["validation"], 128)})
        if pending and share >= pending[0][0]:
            _, copies = pending.pop(0)
            before = time.process_time()
            after = [block for block in range(blocks) for _ in range(copies)]
            insert_blocks_(model, after=after, how=arm.how, optimizer=optimizer)
            took = time.process_time() - before
            spent, growing, blocks = spent + took, growing + took, model.config.num_hidden_layers
        train_step_(model, optimizer, next(batches), arm.rate * schedule(share))
        spent, step = spent + price[blocks], step + 1
    result = {
        "rate": arm.rate,
        "steps": step,
        "start": start,
        "parameters": count_parameters(model),
        "seconds": spent,
        "growth_seconds": growing,
        "process_seconds": time.process_time() - started,
        "curve": curve,
        "validation": {"loss": mean_loss(model, splits["validation"], 1_024)},
    }
    return result | ({"test": {"loss": mean_loss(model, splits["test"])}} if test else {})


UNIFORM = LanguageArm("4 blocks", 4)
# Trials with another seed chose the moment and the number of blocks.
STACKED = LanguageArm("2 blocks, stacked to 4", 2, ((0.2, 1),))
SILENT = replace(STACKED, name="2 blocks, silent copies to 4", how="copy")
# With what is saved by beginning small: is the uniform model's loss reached sooner?
SOONER = replace(STACKED, name="2 blocks, stacked to 4, 70 % of the seconds", share=0.7)
# A trial: twice as many blocks, which are too many for these seconds.
DEEP = LanguageArm("8 blocks", 8)
DEEP_STACKED = LanguageArm("2 blocks, stacked to 8", 2, ((0.25, 3),))
RATES = (2e-3, 4e-3, 6e-3)
RATE = 6e-3  # the lowest validation loss of both with 4 blocks


def language_timing() -> Iterable[tuple[str, int, Callable[[], dict[str, Any]]]]:
    """Name, seed and function of the runs that time steps."""
    yield from (("timing", seed, partial(run_timing, seed)) for seed in range(3))


def language_tuning() -> Iterable[tuple[str, int, Callable[[], dict[str, Any]]]]:
    """Learning rates, on the validation split and a seed that nothing else uses."""
    tried = [(arm, rate) for arm in (UNIFORM, STACKED, DEEP) for rate in RATES]
    for arm, rate in (*tried, (DEEP_STACKED, RATES[0])):
        yield f"{arm.name}, {rate:g}", 100, partial(run_language, replace(arm, rate=rate), 100)


def language() -> Iterable[tuple[str, int, Callable[[], dict[str, Any]]]]:
    """A uniform model, and what gets half of its blocks on the way, with seeds that nothing was chosen by."""
    for seed in range(10, 20):
        for arm in (UNIFORM, STACKED, SILENT, SOONER):
            yield arm.name, seed, partial(run_language, replace(arm, rate=RATE), seed, test=True)
