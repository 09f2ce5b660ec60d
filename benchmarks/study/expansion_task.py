"""The two texts of the expansion, and the language model that was trained on the old one."""

from functools import cache, lru_cache
from itertools import islice
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

from hf_saddle.demo.text import train_tokenizer

from .language import in_tenths, make_llama, make_optimizer, mean_loss, modules, random_passages, schedule
from .training import train_step_


BLOCKS, VOCABULARY = 4, 1_024
BASE_STEPS, BASE_RATE = 600, 6e-3


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
    train_(model, "old", steps, BASE_RATE, seed)
    return model


@lru_cache(maxsize=1)
def losses_before(seed: int, steps: int, split: str) -> dict[str, float]:
    """Of the trained model."""
    return losses(base(seed, steps), split)


def passages(text: str, seed: int, number: int) -> list[dict[str, Tensor]]:
    """Batches of the training part of a text, in an order that depends on the seed alone, so that arms are paired."""
    return list(islice(random_passages(texts()[text]["train"], seed), number))


def train_(model: Any, text: str, steps: int, rate: float, seed: int) -> None:
    """Train on a text what is not frozen: warm-up, constant rate, linear decay."""
    optimizer = make_optimizer(model)
    for step, batch in enumerate(passages(text, seed, steps)):
        train_step_(model, optimizer, batch, rate * schedule(step / steps))


def losses(model: Any, split: str) -> dict[str, float]:
    """In nats per token: `loss` on the new text, `old` on the old one."""
    return {"loss": mean_loss(model, texts()["new"][split]), "old": mean_loss(model, texts()["old"][split], 512)}
