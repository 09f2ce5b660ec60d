"""Which heads are to come: such as complement each other, one after the other, within a number or a budget."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from ..operators import OPERATORS, SCALED
from ..records.layer_growth import VECTORS, LayerGrowth
from ..records.plan import GrowthPlan
from .head_scores import HeadScores
from .joint import judge
from .pursuit import pursue


def plan_heads(
    scores: HeadScores,
    *,
    number: int | None = None,
    budget: float | None = None,
    unit: str = "parameters",
    significance: float = 0.0,
) -> GrowthPlan:
    """
    Choose heads that complement each other, one after the other by what each adds to the joint gain per cost.

    New heads start unread, so that the gain predicted for them is what their natural step would bring. Splits take the
    natural step at once, as far as the step that they were scored with goes at most; those that it moves by nothing
    are left out.

    Args:
        scores ([`HeadScores`]): The candidates.
        number (`int`, *optional*): How many heads at most.
        budget (`float`, *optional*): What they may add at most.
        unit (`str`, *optional*, defaults to `"parameters"`): `"parameters"` or `"macs"`, of budget and cost.
        significance (`float`, *optional*, defaults to 0.0):
            Standard errors by which the joint gain on the samples that judge must exceed 0, else nothing grows.

    Returns:
        [`GrowthPlan`]: For [`grow_`].

    Raises:
        ValueError: If neither `number` nor `budget` is given, or one of them cannot be meant.
    """
    if unit not in ("parameters", "macs"):
        raise ValueError(f'`unit` must be "parameters" or "macs", got {unit!r}.')
    limits = [limit for limit in (number, budget) if limit is not None]
    if not limits or min(limits) <= 0:
        raise ValueError(
            f"Say how many heads may come, `number`, or what they may cost, `budget`: {number}, {budget}."
        )
    costs = [getattr(cost, unit) for cost in scores.costs]
    left = {"number": float("inf") if number is None else number, "cost": float("inf") if budget is None else budget}

    def admit(candidate: int) -> bool:
        if left["number"] < 1 or costs[candidate] > left["cost"]:
            return False
        left["number"] -= 1
        left["cost"] -= costs[candidate]
        return True

    columns = scores.columns
    prices = torch.tensor(costs, dtype=torch.float64)
    order = pursue(columns.fitted, columns.one_way, prices, torch.arange(len(prices)), admit)
    tried = Counter(scores.operators)
    plan = GrowthPlan(criterion="heads", budget=budget, candidates=dict(tried))
    if not order:
        return replace(plan, held_back="No head fits into the budget.")
    found = judge(columns.of(order), 1.0)
    if found.gain <= significance * found.error:
        text = f"{len(order)} heads would lower the loss of held-out samples by {found.gain:.2g} ± {found.error:.1g}"
        return replace(plan, held_back=f"{text}, less than {significance} standard errors.")
    shares = found.shares_of(found.gain)
    steps = zip(order, found.coefficients.tolist(), shares.tolist(), strict=True)
    kept = {
        index: stepped_head(scores.candidates[index], size, share)
        for index, size, share in steps
        if scores.operators[index] not in SCALED or size > 0
    }
    return replace(
        plan,
        growths=tuple(merged_heads(chain.from_iterable(kept.values()))),
        parameters=sum(scores.costs[index].parameters for index in kept),
        macs=sum(scores.costs[index].macs for index in kept),
    )


def stepped_head(modules: Sequence[LayerGrowth], coefficient: float, gain: float) -> list[LayerGrowth]:
    """One head, in each of its modules, with its share of what is predicted, and, if it is split, the judged step."""
    shared = [replace(growth, predicted_gain=torch.tensor([gain / len(modules)])) for growth in modules]
    if modules[0].operator not in SCALED:
        return shared
    return [replace(growth, steps=growth.steps * coefficient**0.5) for growth in shared]


def merged_heads(heads: Iterable[LayerGrowth]) -> Iterator[LayerGrowth]:
    """Growths of one head each as growths of modules."""
    groups: dict[tuple[str, str], list[LayerGrowth]] = {}
    for growth in heads:
        groups.setdefault((growth.linear, growth.operator), []).append(growth)
    for (_, operator), members in groups.items():
        numbers = tuple(growth.neurons[0] for growth in members)
        if not OPERATORS[operator].copies:
            numbers = tuple(range(numbers[0], numbers[0] + len(members)))
        fields: dict[str, Any] = {
            name: torch.cat([getattr(growth, name) for growth in members]) for name in ("directions", *VECTORS)
        }
        yield replace(members[0], neurons=numbers, candidates=len(members), **fields)
