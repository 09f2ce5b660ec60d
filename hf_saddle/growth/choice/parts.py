"""Candidates of each kind, with what they would do as columns of one regression."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...curvature import CurvatureReport, UnitScores
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.sites import Place
from ..budget import Candidate
from ..config import GrowthConfig
from ..costs import Cost, CostBook
from ..operators import OPERATORS
from ..records.layer_growth import LayerGrowth
from .block_gains import BlockCandidate
from .candidates import found_by, measured_by, offered_of
from .head_scores import HeadScores
from .joint import Columns, natural_step
from .natural_step import columns_of
from .planner import check_branches, check_scores


class _Whole(Candidate):
    """What could come as a whole: its cost depends on nothing else that is chosen."""

    adds: Cost

    def cost(self, book: CostBook) -> Cost:
        """What it adds."""
        return self.adds


class HeadCandidate(_Whole):
    """One head that could come, in one attention module or in all that must have as many."""

    def __init__(self, operator: str, adds: Cost, modules: tuple[LayerGrowth, ...]):
        self.operator, self.adds, self.modules = operator, adds, modules
        first = modules[0]
        self.place = Place.parse(first.linear).linear
        # New heads may be several.
        self.once = first.linear, first.neurons[0] if OPERATORS[operator].copies else id(self)


class InsertedCandidate(_Whole):
    """New blocks at one place."""

    def __init__(self, how: str, block: BlockCandidate):
        self.operator, self.adds, self.block, self.how = f"block_{how}", block.cost, block, how
        self.place, self.once = "", (block.after, -1)  # in no block


@dataclass(frozen=True, eq=False)
class Part:
    """
    Candidates of one kind.

    Attributes:
        candidates (`tuple`): Those to choose from.
        columns ([`Columns`]): What each would do, a column for each, of the same samples in every part.
        found (`dict[str, int]`): How many there are, by operator, of which candidates may be the best only.
    """

    candidates: tuple[Candidate, ...]
    columns: Columns
    found: dict[str, int]


def neuron_part(
    report: CurvatureReport, model: GrowablePreTrainedModel, config: GrowthConfig, scores: UnitScores
) -> Part:
    """Neurons, with the scores of `candidate_growths(report, model, config)`."""
    check_branches(model, config)
    found = list(found_by(measured_by(report, model, config), config))
    candidates = offered_of(found, report)
    check_scores(scores, candidates)
    return Part(tuple(candidates), _on_cpu(columns_of(scores)), dict(Counter(each.operator for each in found)))


def head_part(scores: HeadScores) -> Part:
    """Heads, as they were scored."""
    candidates = tuple(map(HeadCandidate, scores.operators, scores.costs, scores.candidates))
    return Part(candidates, scores.columns, dict(Counter(scores.operators)))


def block_part(blocks: Sequence[BlockCandidate], judges: Tensor, how: str) -> Part:
    """
    Blocks, each with one column: what a block does whose gates open along their own natural step, which is fitted to
    the samples that choose.

    Args:
        blocks (`Sequence[BlockCandidate]`): The candidates, with scores of all samples.
        judges (`Tensor`): Samples that judge, bool, shape `(samples,)`.
        how (`str`): How blocks are inserted.
    """
    values = []
    for block in blocks:
        gates = Columns.unbounded(block.scores, judges, block.terms)
        values.append(gates.values @ natural_step(gates))
    columns = Columns.unbounded(torch.stack(values, 1), judges, blocks[0].terms)
    columns = replace(columns, low=torch.zeros_like(columns.low))
    candidates = tuple(InsertedCandidate(how, block) for block in blocks)
    return Part(candidates, columns, {f"block_{how}": len(candidates)})


def _on_cpu(columns: Columns) -> Columns:
    names = ("values", "judges", "scale", "low", "high")
    return replace(columns, **{name: getattr(columns, name).cpu() for name in names})
