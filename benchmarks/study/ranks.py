"""How the rank of LoRA is shared among linears: by curvature, by gradients or at random, at equal parameters."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_saddle import analyze_curvature

from .finetuning_task import BATCH
from .task import Split


PROBE = 512  # images, as those of a growth event


def linears_of(model: Any, names: Sequence[str]) -> dict[str, nn.Linear]:
    """The linears of the encoder that may get an adapter, by path."""
    return {path: layer for path, layer in model.named_modules() if path.rpartition(".")[2] in names}


def probe_of(split: Split, seed: int) -> list[dict[str, Tensor]]:
    """Images of the training set, drawn anew for every seed."""
    drawn = torch.randperm(len(split), generator=torch.Generator().manual_seed(5_000 + seed))[:PROBE]
    return [split.batch(part) for part in drawn.split(BATCH)]


def by_curvature(model: Any, linears: dict[str, nn.Linear], batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """What the neurons of each linear would gain by depth, those whose curvature is beyond noise."""
    report = analyze_curvature(model, batches, "depth", whiten=True, linears=list(linears))
    return {layer.linear: float(layer.gain[layer.significant].sum()) for layer in report}


def by_gradient(model: Any, linears: dict[str, nn.Linear], batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """The squared norm of the gradient of each linear, free of bias: the product of the gradients of two halves."""
    weights = [layer.weight for layer in linears.values()]
    sums = []
    for half in (batches[::2], batches[1::2]):
        losses = [model(**batch).loss for batch in half]
        sums.append(torch.autograd.grad(sum(losses) / len(half), weights))
    return {path: max(float((one * other).sum()), 0.0) for path, one, other in zip(linears, *sums, strict=True)}


def shared(gains: dict[str, float], linears: dict[str, nn.Linear], budget: int) -> dict[str, int]:
    """Ranks whose parameters are in proportion to gains; what rounding leaves goes to the largest remainders."""
    total = sum(gains.values())
    if total <= 0:
        raise ValueError("No linear gains anything: there is nothing to share the ranks by.")
    cost = {path: layer.in_features + layer.out_features for path, layer in linears.items()}
    wished = {path: budget * gain / total / cost[path] for path, gain in gains.items()}
    ranks = {path: int(wish) for path, wish in wished.items()}
    left = budget - sum(rank * cost[path] for path, rank in ranks.items())
    for path in sorted(wished, key=lambda path: ranks[path] - wished[path]):
        if cost[path] <= left:
            ranks[path], left = ranks[path] + 1, left - cost[path]
    return {path: rank for path, rank in ranks.items() if rank > 0}


def exchanged(ranks: dict[str, int], linears: dict[str, nn.Linear], seed: int) -> dict[str, int]:
    """The same ranks for other linears of the same costs, at random."""
    cost = {path: layer.in_features + layer.out_features for path, layer in linears.items()}
    generator, found = random.Random(seed), {}
    for size in sorted({*cost.values()}):
        alike = [path for path in linears if cost[path] == size]
        drawn = [ranks.get(path, 0) for path in alike]
        generator.shuffle(drawn)
        found |= dict(zip(alike, drawn, strict=True))
    return {path: rank for path, rank in found.items() if rank > 0}


def ranks_of(way: str, model: Any, names: Sequence[str], split: Split, budget: int, seed: int) -> dict[str, int]:
    """The rank of every linear that gets an adapter, by `"curvature"`, `"gradient"` or `"exchanged"`, of curvature."""
    linears, batches = linears_of(model, names), probe_of(split, seed)
    training = model.training
    model.requires_grad_(True).eval()
    gains = (by_gradient if way == "gradient" else by_curvature)(model, linears, batches)
    model.train(training)
    ranks = shared(gains, linears, budget)
    return exchanged(ranks, linears, seed) if way == "exchanged" else ranks
