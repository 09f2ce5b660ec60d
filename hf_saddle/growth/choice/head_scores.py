"""What heads would do to the loss: new ones by their slopes, splits by their curvature, in one currency."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...curvature.head_slopes import outgoing_scores
from ...curvature.heads import capture_heads
from ...curvature.loss import Loss, own_loss_of, terms_per_sample
from ...curvature.ranks import Ranks
from ...models.blocks import split_path
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.sites import Place
from ..costs import Cost
from ..counting import count_positions
from ..operators import HEAD_WAYS, SCALED
from ..records.layer_growth import LayerGrowth
from ..records.plan import GrowthPlan
from ..surgery.grow import Growing, added_by, check_model, growing_
from ..surgery.head_drafts import find_attention, stacks_of
from ..surgery.heads import STEP, check_family, head_growth
from .halves import halves
from .joint import Columns


@dataclass(frozen=True, eq=False)
class HeadScores:
    """
    What heads would do, sample by sample: with coefficients `c` the loss of sample `n` changes by `Σ_j values[n, j]
    c_j` to first order. That of a split is the square of the factor of its step, between 0 and 1; that of a new head
    the size of its outgoing weights `c · outgoing`, in which it is at rest.

    Attributes:
        candidates (`tuple[tuple[LayerGrowth, ...], ...]`):
            One head each, in one attention module, or in all that must have as many heads.
        values (`Tensor`): Shape `(samples, candidates)`, float64.
        judges (`Tensor`): Samples that neither directions nor coefficients are fitted to, bool, shape `(samples,)`.
        costs (`tuple[Cost, ...]`): What each candidate adds.
        outgoing (`tuple[tuple[Tensor, ...] | None, ...]`):
            Of new heads the outgoing weights of steepest descent, of norm 1 over its modules, for each of them, shape
            `(d, columns)`.
        terms (`float`): Number of predictions that the loss of a sample is the mean of.
    """

    candidates: tuple[tuple[LayerGrowth, ...], ...]
    values: Tensor
    judges: Tensor
    costs: tuple[Cost, ...]
    outgoing: tuple[tuple[Tensor, ...] | None, ...]
    terms: float = 1.0

    @property
    def operators(self) -> tuple[str, ...]:
        """How each candidate grows."""
        return tuple(modules[0].operator for modules in self.candidates)

    @property
    def columns(self) -> Columns:
        """The scores in a scale in which coefficients are of a size."""
        fitted = self.values[~self.judges]
        size = fitted.square().mean(dim=0).sqrt().clamp_min(torch.finfo(fitted.dtype).tiny)
        splits = torch.tensor([operator in SCALED for operator in self.operators])
        low, high = torch.where(splits, 0.0, -torch.inf), torch.where(splits, size, torch.inf)
        return Columns(self.values / size, self.judges, 1.0 / size, low.to(size), high, self.terms)


def score_heads(
    model: GrowablePreTrainedModel,
    batches: Iterable[Any],
    ways: Sequence[str] = tuple(HEAD_WAYS),
    *,
    paths: Sequence[str] | None = None,
    candidates: int = 1,
    step_size: float = STEP,
    steps: int = 8,
    loss: Loss | None = None,
    seed: int = 0,
    judging: Sequence[Any] | None = None,
    ranks: Ranks | None = None,
    growing: Growing | None = None,
) -> HeadScores:
    """
    Score heads that could be added to a model, which stays as it is.

    New heads have random rows; they are there, unread, while the slope of the loss in their outgoing weights is
    measured. Splits part along the lowest eigenvector of the head's splitting matrix, see [`HeadSplits`]. Both are
    fitted to one half of the samples. Where several modules must have as many heads (T5), a head of all of them is one
    candidate: its score is that of what they do together, in the proportion of their slopes, or of their steps.

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
        judging (`Sequence`, *optional*):
            Batches of samples that judge; all of `batches` choose then. By default every second sample of `batches`.
        ranks ([`Ranks`], *optional*):
            Processes that share the probe. The scores are those of the samples of all: of each rank those that choose,
            then those that judge.
        growing (`Callable`, *optional*):
            Lets the model have new heads for a while, where it is sharded over `ranks`; by default one process has it
            whole.

    Raises:
        ValueError: If heads of the model cannot grow, `paths` name some only of modules that must have as many heads,
            or there are fewer than eight samples.
    """
    ranks, choosing = ranks or Ranks(), list(batches)
    if judging is None:
        choosing, judging = halves(choosing)
    check_family(model)
    if growing is None:
        check_model(model)
    if not ways or not set(ways) <= set(HEAD_WAYS):
        raise ValueError(f"`ways` must be of {', '.join(HEAD_WAYS)}, got {ways!r}.")
    stacks = stacks_of(model, measurable(model) if paths is None else paths)
    loss = loss or own_loss_of(model, [*choosing, *judging], ranks)
    found: list[tuple[LayerGrowth, ...]] = []
    values: list[Tensor] = []
    outgoing: list[tuple[Tensor, ...] | None] = []
    judges = torch.empty(0)
    for way in ways:
        score = _score_new if way == "new" else _score_splits
        options = {"candidates": candidates, "step_size": step_size, "steps": steps, "loss": loss, "seed": seed}
        options["growing"] = growing or growing_
        heads, (fitted, held_out), weights = score(model, choosing, judging, stacks, ranks=ranks, **options)
        found += heads
        values.append(torch.cat([fitted, held_out]).double().cpu())
        outgoing += weights
        judges = torch.arange(len(values[0])) >= len(fitted)
    everywhere, judges = (torch.cat(ranks.gather(part)) for part in (torch.cat(values, 1), judges))
    if not bool(torch.isfinite(everywhere).all()):
        raise ValueError("The scores of some heads are not finite. Check the model's loss, or probe in float64.")
    terms = terms_per_sample(model, [*choosing, *judging], ranks)
    return HeadScores(tuple(found), everywhere, judges, head_costs(model, found), tuple(outgoing), terms)


def measurable(model: GrowablePreTrainedModel) -> list[str]:
    """
    Paths of the attention modules whose heads can be measured: those that the forward pass reaches, as it does not
    reach cross-attention without an encoder.
    """
    positions = count_positions(model)
    return [attention.path for attention in model.attentions() if positions[attention.of(attention.heads.reader)]]


def head_costs(model: GrowablePreTrainedModel, candidates: Sequence[tuple[LayerGrowth, ...]]) -> tuple[Cost, ...]:
    """What each of some heads adds; those of modules of a list of blocks with the same shapes are counted once."""
    counted: dict[Any, Cost] = {}
    found = []
    for modules in candidates:
        key = tuple(_shapes(model, growth) for growth in modules)
        if key not in counted:
            counted[key] = added_by(model, GrowthPlan(modules))
        found.append(counted[key])
    return tuple(found)


def _shapes(model: GrowablePreTrainedModel, growth: LayerGrowth) -> Any:
    """What the cost of a head of a module follows from."""
    heads = find_attention(model, growth.linear).heads
    layers = [model.get_submodule(path) for path in (*heads.rows, heads.reader)]
    sizes = tuple((name, x.shape) for layer in layers for name, x in layer.named_parameters())
    place = Place.parse(growth.linear)
    # A copy takes along the units that feed it, of which each head may have others.
    own = (growth.linear, growth.neurons) if any("skip." in name for name, _ in sizes) else ()
    return growth.operator, split_path(place.block)[0], place.linear, sizes, own


Scored = tuple[list[tuple[LayerGrowth, ...]], tuple[Tensor, Tensor], list[tuple[Tensor, ...] | None]]


def _score_new(
    model: GrowablePreTrainedModel,
    choosing: Sequence[Any],
    judging: Sequence[Any],
    stacks: Sequence[tuple[str, ...]],
    **options: Any,
) -> Scored:
    loss, ranks, number = options["loss"], options["ranks"], options["candidates"]
    paths = [path for stack in stacks for path in stack]
    growths = {
        path: head_growth(model, path, number, seed=options["seed"] + index) for index, path in enumerate(paths)
    }
    with options["growing"](model, GrowthPlan(tuple(growths.values()))):
        outgoing, fitted = outgoing_scores(model, choosing, stacks, number, loss, ranks=ranks)
        _, held_out = outgoing_scores(model, judging, stacks, number, loss, outgoing, ranks)
    # Each as it would come alone.
    alone = [
        tuple(replace(_one(growths[path], place), neurons=growths[path].neurons[:1]) for path in stack)
        for stack in stacks
        for place in range(number)
    ]
    return alone, (fitted, held_out), list(outgoing)


def _score_splits(
    model: GrowablePreTrainedModel,
    choosing: Sequence[Any],
    judging: Sequence[Any],
    stacks: Sequence[tuple[str, ...]],
    **options: Any,
) -> Scored:
    paths = [path for stack in stacks for path in stack]
    fit, judge = (capture_heads(model, part, paths, options["loss"], options["ranks"]) for part in (choosing, judging))
    heads: dict[str, list[LayerGrowth]] = {}
    values: dict[str, tuple[Tensor, Tensor]] = {}
    for index, path in enumerate(paths):
        pairs = fit[path].pairs(options["steps"], options["seed"] + index)
        growth = head_growth(
            model, path, fit[path].number, "split", directions=pairs.vectors, step_size=options["step_size"]
        )
        growth = replace(growth, eigenvalues=pairs.values.float().cpu())
        moved = (growth.directions * growth.steps[:, None]).to(pairs.vectors)
        values[path] = fit[path].forms(moved), judge[path].forms(moved)
        heads[path] = [_one(growth, place) for place in range(len(growth.neurons))]
    # To second order splits of several modules do what each does alone.
    fitted, held_out = (
        torch.cat([torch.stack([values[path][half] for path in stack]).sum(dim=0) for stack in stacks], 1)
        for half in (0, 1)
    )
    found = [modules for stack in stacks for modules in zip(*(heads[path] for path in stack), strict=True)]
    return found, (fitted, held_out), [None] * len(found)


def _one(growth: LayerGrowth, place: int) -> LayerGrowth:
    """One of the heads of a growth."""
    own = slice(place, place + 1)
    fields = {name: getattr(growth, name)[own] for name in ("directions", "steps", "gains", "predicted_gain")}
    return replace(growth, neurons=growth.neurons[own], eigenvalues=growth.eigenvalues[own], **fields)
