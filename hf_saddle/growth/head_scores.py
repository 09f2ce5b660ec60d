"""What heads would do to the loss: new ones by their slopes, splits by their curvature, in one currency."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..curvature.head_slopes import outgoing_scores
from ..curvature.heads import capture_heads
from ..curvature.loss import Loss
from ..models.modeling_saddle import GrowablePreTrainedModel
from .costs import Cost
from .halves import halves
from .head_drafts import find_attention
from .heads import STEP, check_family, head_growth
from .natural_step import RIDGE
from .plan import GrowthPlan, LayerGrowth
from .surgery import prepare_growth


WAYS = ("new", "split")


@dataclass(frozen=True, eq=False)
class HeadScores:
    """
    What heads would do, sample by sample: with coefficients `c` the loss of sample `n` changes by `Σ_j values[n, j]
    c_j` to first order. That of a split is the square of the factor of its step, between 0 and 1; that of a new head
    the size of its outgoing weights `c · outgoing`, in which it is at rest.

    Attributes:
        candidates (`tuple[LayerGrowth, ...]`): One head each.
        values (`Tensor`): Shape `(samples, candidates)`, float64.
        judges (`Tensor`): Samples that neither directions nor coefficients are fitted to, bool, shape `(samples,)`.
        costs (`tuple[Cost, ...]`): What each candidate adds.
        outgoing (`tuple[Tensor | None, ...]`):
            Of new heads the outgoing weights of steepest descent, of norm 1, shape `(d, columns)`.
    """

    candidates: tuple[LayerGrowth, ...]
    values: Tensor
    judges: Tensor
    costs: tuple[Cost, ...]
    outgoing: tuple[Tensor | None, ...]

    def step(self, chosen: Sequence[int]) -> Tensor:
        """The natural step of some candidates, `-(E[u uᵀ] + ridge)⁻¹ E[u]`, fitted to the samples that choose."""
        values = self.values[~self.judges][:, list(chosen)]
        fisher = values.t() @ values / len(values)
        fisher.diagonal().add_(RIDGE * fisher.diagonal())
        step = -torch.linalg.solve(fisher, values.mean(dim=0))
        splits = torch.tensor([self.candidates[index].operator == "split_head" for index in chosen])
        return torch.where(splits, step.clamp(0, 1), step)

    def gain(self, chosen: Sequence[int], step: Tensor) -> tuple[float, float]:
        """Decrease of the loss that the samples that judge expect of a step, and its standard error."""
        change = self.values[self.judges][:, list(chosen)] @ step
        decrease = -(change + 0.5 * change.square())
        return float(decrease.mean()), float(decrease.std() / len(decrease) ** 0.5)


def score_heads(
    model: GrowablePreTrainedModel,
    batches: Iterable[Any],
    ways: Sequence[str] = WAYS,
    *,
    paths: Sequence[str] | None = None,
    candidates: int = 1,
    step_size: float = STEP,
    steps: int = 8,
    loss: Loss | None = None,
    seed: int = 0,
) -> HeadScores:
    """
    Score heads that could be added to a model, which stays as it is.

    New heads have random rows; they are there, unread, while the slope of the loss in their outgoing weights is
    measured. Splits part along the lowest eigenvector of the head's splitting matrix, see [`HeadSplits`]. Both are
    fitted to one half of the samples.

    Args:
        model ([`GrowablePreTrainedModel`]): The model.
        batches (`Iterable`): The probe batches.
        ways (`Sequence[str]`, *optional*): `"new"`, `"split"` or both.
        paths (`Sequence[str]`, *optional*): Attention modules by path in the model; by default all.
        candidates (`int`, *optional*, defaults to 1): New heads that are tried in each module.
        step_size (`float`, *optional*, defaults to 0.1): Length of the step of a split relative to the head.
        steps (`int`, *optional*, defaults to 8): Lanczos steps.
        loss (`Callable`, *optional*): Maps model and batch to the mean loss over the samples of the batch.
        seed (`int`, *optional*, defaults to 0): Seed of what is random.

    Raises:
        ValueError: If heads of the model cannot grow, or there are fewer than eight samples.
    """
    check_family(model)
    if not ways or not set(ways) <= set(WAYS):
        raise ValueError(f"`ways` must be of {', '.join(WAYS)}, got {ways!r}.")
    choosing, judging = halves(list(batches))
    names = [attention.path for attention in model.attentions()] if paths is None else list(paths)
    for name in names:
        find_attention(model, name)
    found: list[LayerGrowth] = []
    values: list[Tensor] = []
    outgoing: list[Tensor | None] = []
    judges = torch.empty(0)
    for way in ways:
        score = _score_new if way == "new" else _score_splits
        options = {"candidates": candidates, "step_size": step_size, "steps": steps, "loss": loss, "seed": seed}
        heads, (fitted, held_out), weights = score(model, choosing, judging, names, **options)
        found += heads
        values.append(torch.cat([fitted, held_out]).double().cpu())
        outgoing += weights
        judges = torch.arange(len(values[0])) >= len(fitted)
    costs = tuple(head_cost(model, growth) for growth in found)
    return HeadScores(tuple(found), torch.cat(values, 1), judges, costs, tuple(outgoing))


def head_cost(model: GrowablePreTrainedModel, growth: LayerGrowth) -> Cost:
    """What a growth of heads adds to a model."""
    event = prepare_growth(model, GrowthPlan((growth,))).event
    return Cost(event.parameters_after - event.parameters_before, event.macs_after - event.macs_before)


Scored = tuple[list[LayerGrowth], tuple[Tensor, Tensor], list[Tensor | None]]


def _score_new(
    model: GrowablePreTrainedModel, choosing: list[Any], judging: list[Any], paths: Sequence[str], **options: Any
) -> Scored:
    loss = options["loss"]
    growths = [
        head_growth(model, path, options["candidates"], seed=options["seed"] + index)
        for index, path in enumerate(paths)
    ]
    with _grown(model, GrowthPlan(tuple(growths))):
        outgoing, fitted = outgoing_scores(model, choosing, paths, options["candidates"], loss)
        _, held_out = outgoing_scores(model, judging, paths, options["candidates"], loss, outgoing)
    # Each as it would come alone.
    alone = [
        replace(_one(growth, place), neurons=(growth.neurons[0],))
        for growth in growths
        for place in range(options["candidates"])
    ]
    return alone, (fitted, held_out), list(outgoing)


def _score_splits(
    model: GrowablePreTrainedModel, choosing: list[Any], judging: list[Any], paths: Sequence[str], **options: Any
) -> Scored:
    fit, judge = (capture_heads(model, part, paths, options["loss"]) for part in (choosing, judging))
    found: list[LayerGrowth] = []
    values: list[tuple[Tensor, Tensor]] = []
    for index, path in enumerate(paths):
        pairs = fit[path].pairs(options["steps"], options["seed"] + index)
        growth = head_growth(
            model, path, fit[path].number, "split", directions=pairs.vectors, step_size=options["step_size"]
        )
        growth = replace(growth, eigenvalues=pairs.values.float().cpu())
        moved = (growth.directions * growth.steps[:, None]).to(pairs.vectors)
        values.append((fit[path].forms(moved), judge[path].forms(moved)))
        found += [_one(growth, place) for place in range(len(growth.neurons))]
    fitted, held_out = (torch.cat(parts, 1) for parts in zip(*values, strict=True))
    return found, (fitted, held_out), [None] * len(found)


@contextmanager
def _grown(model: GrowablePreTrainedModel, plan: GrowthPlan) -> Iterator[None]:
    """The model itself as a plan makes it, for a while."""
    prepared = prepare_growth(model, plan)
    prepared.commit_()
    try:
        yield
    finally:
        prepared.rollback_()


def _one(growth: LayerGrowth, place: int) -> LayerGrowth:
    """One of the heads of a growth."""
    own = slice(place, place + 1)
    fields = {name: getattr(growth, name)[own] for name in ("directions", "steps", "gains", "predicted_gain")}
    return replace(growth, neurons=growth.neurons[own], eigenvalues=growth.eigenvalues[own], **fields)
