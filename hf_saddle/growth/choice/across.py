"""One plan across kinds: neurons, heads and blocks compete for the budget of an event by what other samples gain."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations

import torch

from ...curvature import CurvatureReport
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..budget import Budget, Candidate, in_unit
from ..config import GrowthConfig
from ..costs import CostBook
from ..operators import SCALED
from ..records.block_records import NewBlock
from ..records.layer_growth import LayerGrowth
from ..records.plan import GrowthPlan
from ..records.timing_record import Timing
from ..surgery.grow import added_by
from .candidates import NeuronCandidate, found_by, growths_of, measured_by
from .head_choice import merged_heads
from .joint import Columns, beside, judge
from .natural_step import NEXT_STEP
from .parts import HeadCandidate, InsertedCandidate, Part
from .pursuit import choose_together
from .reasons import unsupported


# Relative difference of gains up to which they are the same.
_TIE = 1e-9


@dataclass(frozen=True, eq=False)
class Chosen:
    """
    What is to grow.

    Attributes:
        members (`tuple`): The candidates that were chosen.
        columns ([`Columns`], *optional*): What each of them would do; `None` if there are none.
        held_back (`str`, *optional*): Why nothing was chosen.
    """

    members: tuple[Candidate, ...]
    columns: Columns | None
    held_back: str | None = None

    def of(self, places: Sequence[int]) -> "Chosen":
        """Some of them."""
        columns = self.columns.of(places) if places and self.columns is not None else None
        return Chosen(tuple(self.members[place] for place in places), columns, self.held_back)

    def moving(self, plan: GrowthPlan) -> tuple[Columns | None, list[int]]:
        """
        The columns of what takes a step at once, `None` if nothing does; and for each neuron and head of the plan that
        does, in its order, which of them it goes by. A head of several modules has one for all of them.
        """
        places = {each: index for index, member in enumerate(self.members) for each in _parts(member)}
        entries = [places[each] for each in _moving(plan)]
        order = list(dict.fromkeys(entries))
        return self.of(order).columns, [order.index(each) for each in entries]

    def resting(self) -> "Chosen":
        """Those that start at rest."""
        return self.of([index for index, member in enumerate(self.members) if member.operator not in SCALED])


class Across:
    """
    The choice of an event that several kinds compete for.

    Args:
        parts (`Sequence[Part]`): The candidates, by kind.
        report ([`~hf_saddle.CurvatureReport`], *optional*): The measurement that neurons are of.
        model ([`GrowablePreTrainedModel`]): The model, which is not changed.
        config ([`GrowthConfig`]): How, and how much.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        report: CurvatureReport | None,
        model: GrowablePreTrainedModel,
        config: GrowthConfig,
    ):
        self.parts = [part for part in parts if part.candidates]
        self.report, self.model, self.config = report, model, config
        self.share = config.natural_step or NEXT_STEP
        measured = [] if report is None else list(measured_by(report, model, config))
        self.neurons = Counter(each.group for each in found_by(measured, config))
        offered = [each for part in self.parts for each in part.candidates if isinstance(each, HeadCandidate)]
        self.heads = Counter((growth.linear, each.operator) for each in offered for growth in each.modules)
        self.found = dict(sum((Counter(part.found) for part in self.parts), Counter[str]()))

    def choose(self, allowed: float, timing: Timing | None = None) -> Chosen:
        """
        Choose what grows.

        All candidates are columns of one regression on the samples that choose, and are taken one after the other by
        what each adds to the joint gain, per cost, within the budget. That is done for each set of kinds, and those
        are taken from which the samples that judge gain most: so a kind whose scores promise too much, as it has more
        numbers to fit, does not crowd out the others.

        Args:
            allowed (`float`): What the event may add, in the unit of the budget.
            timing ([`Timing`], *optional*): For a budget of seconds.

        Returns:
            [`Chosen`]: Possibly nothing; `held_back` says why then.
        """
        config, best, failed = self.config, None, None
        for some in filter(self._come_together, _sets(self.parts)):
            candidates = [candidate for part in some for candidate in part.candidates]
            columns = beside([part.columns for part in some]) if len(some) > 1 else some[0].columns
            budget = Budget(CostBook(self.model), config, allowed, timing)
            chosen, judged = choose_together(candidates, columns, budget, self.share, config.significance)
            # All kinds come first: where some of them gain as much, that is what is cheapest per cost among all.
            if judged is not None and chosen and (best is None or judged[0] > best[0] * (1 + _TIE)):
                best = judged[0], [candidates[index] for index in chosen], columns.of(chosen)
            elif judged is not None and not chosen and (failed is None or judged[0] > failed[0]):
                failed = judged
        if best is None:
            return Chosen((), None, self._held_back(allowed, timing, failed))
        _, members, columns = best
        # What is chosen beside a head may make it dearer: a copy takes new units of its rows along.
        while len(members) > 1 and timing is None and self._exact(members) > allowed:
            members, columns = members[:-1], columns.of(range(len(members) - 1))
        return Chosen(tuple(members), columns)

    def plan(self, chosen: Chosen, allowed: float) -> GrowthPlan:
        """What is chosen as a plan, before it takes a step, with what is predicted of its next half natural step."""
        plan = GrowthPlan(held_back=chosen.held_back)
        if chosen.columns is not None:
            found = judge(chosen.columns, self.share)
            plan = self._growths(chosen.members, found.shares_of(found.gain).tolist())
        return replace(
            plan,
            criterion=self.config.criterion,
            budget=allowed if math.isfinite(allowed) else None,
            seed=self.config.growth_seed,
            candidates=self.found,
            forecast="next step" if plan else None,
            freeze=self.config.freeze and bool(plan.blocks),
        )

    def pays(self, chosen: Chosen) -> bool:
        """Whether the samples that judge gain by what is chosen, by its scores."""
        if chosen.columns is None:
            return False
        found = judge(chosen.columns, self.share)
        return found.gain > self.config.significance * found.error

    def seconds(self, plan: GrowthPlan, chosen: Chosen, timing: Timing) -> float:
        """What a plan of what is chosen adds to a step, by the timing of its kinds."""
        moving = {*_moving(plan)}
        budget, total = Budget(CostBook(self.model), self.config, math.inf, timing), 0.0
        for member in chosen.members:
            if member.operator not in SCALED or (*member.once, member.operator) in moving:
                total += budget.price(member)
                budget.book_(member)
        return total

    def _come_together(self, parts: Sequence[Part]) -> bool:
        """Whether one event may have all of these kinds: a new block has as many heads as there were before."""
        shared = any(attention.stack is not None for attention in self.model.attentions())
        kinds = {type(candidate) for part in parts for candidate in part.candidates}
        return not (shared and {HeadCandidate, InsertedCandidate} <= kinds)

    def _exact(self, members: Sequence[Candidate]) -> float:
        return in_unit(added_by(self.model, self._growths(members, [0.0] * len(members))), self.config.budget_unit)

    def _growths(self, members: Sequence[Candidate], shares: Sequence[float]) -> GrowthPlan:
        """What some candidates make together, each with what is predicted of it."""
        neurons = [member for member in members if isinstance(member, NeuronCandidate)]
        growths: list[LayerGrowth] = []
        if neurons:
            assert self.report is not None
            growths += growths_of(neurons, self.report, self.model, self.config, self.neurons)
        told = list(zip(members, shares, strict=True))
        heads = merged_heads(
            replace(growth, predicted_gain=torch.tensor([share / len(member.modules)]))
            for member, share in told
            if isinstance(member, HeadCandidate)
            for growth in member.modules
        )
        growths += [replace(growth, candidates=self.heads[growth.linear, growth.operator]) for growth in heads]
        blocks = [(member, share) for member, share in told if isinstance(member, InsertedCandidate)]
        new = (
            NewBlock(member.block.after, member.how, share / member.block.number)
            for member, share in blocks
            for _ in range(member.block.number)
        )
        return GrowthPlan(tuple(growths), blocks=tuple(new), seed=self.config.growth_seed)

    def _held_back(self, allowed: float, timing: Timing | None, judged: tuple[float, float, int] | None) -> str:
        """Why nothing grows: no candidates, none within the budget, or none that held-out samples gain by."""
        counts = ", ".join(f"{number} by {name}" for name, number in self.found.items())
        if not self.parts:
            return "Significance: none of the neurons that may grow is a candidate."
        if judged is not None:
            return unsupported(*judged, f"candidates ({counts})", self.config)
        budget = Budget(CostBook(self.model), self.config, allowed, timing)
        cheapest = min(budget.price(candidate) for part in self.parts for candidate in part.candidates)
        return (
            f"Budget: there are candidates ({counts}), but this event may add {allowed:,.6g} "
            f"{self.config.budget_unit}, and the cheapest of them costs {cheapest:,.6g}."
        )


def _parts(member: Candidate) -> list[tuple[str, int, str]]:
    """Linear, neuron and operator of all that a candidate lets grow."""
    if isinstance(member, HeadCandidate):
        return [(growth.linear, growth.neurons[0], growth.operator) for growth in member.modules]
    return [(*member.once, member.operator)]


def _moving(plan: GrowthPlan) -> Iterable[tuple[str, int, str]]:
    """Linear, neuron and operator of what takes a step at once, in the order of a plan."""
    for growth in plan.growths:
        if growth.operator in SCALED:
            yield from ((growth.linear, neuron, growth.operator) for neuron in growth.neurons)


def _sets(parts: Sequence[Part]) -> Iterable[tuple[Part, ...]]:
    sizes = range(len(parts), 0, -1)
    return chain.from_iterable(combinations(parts, size) for size in sizes)
