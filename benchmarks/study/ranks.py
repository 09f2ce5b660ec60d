"""How the rank of LoRA is shared among linears: by curvature, by gradients or at random, at equal parameters."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_saddle import analyze_curvature
from hf_saddle.curvature.lora import lora_ranks, shared_ranks

from .finetuning_task import BATCH
from .glosses import Texts
from .task import Split


PROBE = 512  # images or texts, as those of a growth event


def linears_of(model: Any, names: Sequence[str]) -> dict[str, nn.Linear]:
    """The linears of the encoder that may get an adapter, by path."""
    ends = tuple(f".{name}" for name in names)
    return {path: layer for path, layer in model.named_modules() if path.endswith(ends)}


def probe_of(split: Split | Texts, seed: int) -> list[dict[str, Tensor]]:
    """Images or texts of the training set, drawn anew for every seed."""
    drawn = torch.randperm(len(split), generator=torch.Generator().manual_seed(5_000 + seed))[:PROBE]
    return [split.batch(part) for part in drawn.split(BATCH)]


def by_curvature(
    model: Any, linears: dict[str, nn.Linear], batches: list[dict[str, Tensor]], budget: int
) -> dict[str, int]:
    """What the library proposes."""
    return lora_ranks(analyze_curvature(model, batches, "depth", whiten=True, linears=list(linears)), budget)


def by_gradient(
    model: Any, linears: dict[str, nn.Linear], batches: list[dict[str, Tensor]], budget: int
) -> dict[str, int]:
    """In proportion to the squared norms of gradients, free of bias: the products of the gradients of two halves."""
    weights = [layer.weight for layer in linears.values()]
    sums = []
    for half in (batches[::2], batches[1::2]):
        losses = [model(**batch).loss for batch in half]
        sums.append(torch.autograd.grad(sum(losses) / len(half), weights))
    norms = {path: max(float((one * other).sum()), 0.0) for path, one, other in zip(linears, *sums, strict=True)}
    return shared_ranks(norms, costs_of(linears), budget)


def costs_of(linears: dict[str, nn.Linear]) -> dict[str, int]:
    """Parameters of one rank of LoRA."""
    return {path: layer.in_features + layer.out_features for path, layer in linears.items()}


def exchanged(ranks: dict[str, int], linears: dict[str, nn.Linear], seed: int) -> dict[str, int]:
    """The same ranks for other linears of the same costs, at random."""
    cost, generator, found = costs_of(linears), random.Random(seed), {}
    for size in sorted({*cost.values()}):
        alike = [path for path in linears if cost[path] == size]
        drawn = [ranks.get(path, 0) for path in alike]
        generator.shuffle(drawn)
        found |= dict(zip(alike, drawn, strict=True))
    return {path: rank for path, rank in found.items() if rank > 0}


def ranks_of(
    way: str, model: Any, names: Sequence[str], split: Split | Texts, budget: int, seed: int
) -> dict[str, int]:
    """The rank of every linear that gets an adapter, by `"curvature"`, `"gradient"` or `"exchanged"`, of curvature."""
    linears, batches = linears_of(model, names), probe_of(split, seed)
    training = model.training
    model.requires_grad_(True).eval()
    ranks = (by_gradient if way == "gradient" else by_curvature)(model, linears, batches, budget)
    model.train(training)
    return exchanged(ranks, linears, seed) if way == "exchanged" else ranks
