"""Which heads are to come: such as complement each other, one after the other, within a number or a budget."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .head_scores import HeadScores
from .plan import GrowthPlan, LayerGrowth
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

    New heads start unread, so that the gain predicted for them is what their natural step would bring; splits take
    their steps at once.

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

    values = scores.values[~scores.judges]
    # In a scale in which coefficients are of a size.
    values = values / values.square().mean(dim=0).sqrt().clamp_min(torch.finfo(values.dtype).tiny)
    splits = torch.tensor([growth.operator == "split_head" for growth in scores.candidates])
    order = pursue(values, splits, torch.tensor(costs, dtype=values.dtype), torch.arange(len(splits)), admit)
    tried = {name: sum(g.operator == name for g in scores.candidates) for name in ("new_head", "split_head")}
    plan = GrowthPlan(criterion="heads", budget=budget, candidates={name: n for name, n in tried.items() if n})
    if not order:
        return replace(plan, held_back="No head fits into the budget.")
    step = scores.step(order)
    gain, error = scores.gain(order, step)
    if gain <= significance * error:
        text = f"{len(order)} heads would lower the loss of held-out samples by {gain:.2g} ± {error:.1g}"
        return replace(plan, held_back=f"{text}, less than {significance} standard errors.")
    slopes = -(scores.values[scores.judges][:, order] * step).mean(dim=0)
    shares = (slopes * (gain / slopes.sum())).float()
    return replace(
        plan,
        growths=tuple(_merged([(scores.candidates[i], share) for i, share in zip(order, shares, strict=True)])),
        parameters=sum(scores.costs[index].parameters for index in order),
        macs=sum(scores.costs[index].macs for index in order),
    )


def _merged(chosen: Sequence[tuple[LayerGrowth, Tensor]]) -> Iterator[LayerGrowth]:
    """Growths of one head each as growths of modules, with what is predicted of each head."""
    groups: dict[tuple[str, str], list[tuple[LayerGrowth, Tensor]]] = {}
    for growth, share in chosen:
        groups.setdefault((growth.linear, growth.operator), []).append((growth, share))
    for (_, operator), members in groups.items():
        first = members[0][0]
        numbers = tuple(growth.neurons[0] for growth, _ in members)
        if operator == "new_head":
            numbers = tuple(range(numbers[0], numbers[0] + len(members)))
        fields: dict[str, Any] = {
            name: torch.cat([getattr(growth, name) for growth, _ in members])
            for name in ("directions", "steps", "gains", "eigenvalues")
        }
        shares = torch.stack([share for _, share in members])
        yield replace(first, neurons=numbers, predicted_gain=shares, candidates=len(members), **fields)
