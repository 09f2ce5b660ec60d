"""From measured gains to a plan of new blocks: most gain on held-out samples per cost, within the budget."""

import math
from collections.abc import Sequence

import torch

from ...models.modeling_saddle import GrowablePreTrainedModel
from ..budget import event_budget, in_unit
from ..config import GrowthConfig
from ..records.block_records import NewBlock
from ..records.plan import GrowthPlan
from .block_gains import BlockCandidate
from .joint import held_out_gain


def plan_blocks(
    candidates: Sequence[BlockCandidate],
    model: GrowablePreTrainedModel,
    config: GrowthConfig,
    *,
    event: int = 0,
    lr_ratio: float = 1.0,
    to_come: int | None = None,
) -> GrowthPlan:
    """
    Choose which blocks are inserted.

    One candidate after the other is taken: that which adds most to the joint gain of those taken, on samples that the
    steps were not fitted to, per parameter (or multiply-accumulate), while it gains anything and the budget lasts, or
    with `selection="gain"` while the budget lasts. The arguments are those of [`plan_growth`], with what
    [`block_candidates`] measured in place of a report.

    Returns:
        [`GrowthPlan`]: Possibly empty; `held_back` says why then.
    """
    return choose_blocks(candidates, config, event_budget(model, config, event, lr_ratio, to_come))


def choose_blocks(candidates: Sequence[BlockCandidate], config: GrowthConfig, allowed: float) -> GrowthPlan:
    """[`plan_blocks`] for an event that may add what is `allowed`."""
    waiting = {each.after: in_unit(each.cost, config.budget_unit) for each in candidates}
    known = {each.after: each for each in candidates}
    chosen: dict[str, float] = {}
    left, total, parameters, macs = allowed, 0.0, 0, 0
    while True:
        taken = [known[path].scores for path in chosen]
        gains = {
            path: held_out_gain(torch.cat([*taken, known[path].scores], 1), known[path].terms) - total
            for path, price in waiting.items()
            if price <= left
        }
        best = max(gains, key=lambda path: gains[path] / waiting[path], default=None)
        if best is None or (gains[best] <= 0 and config.selection != "gain"):
            break
        chosen[best], total = gains[best], total + gains[best]
        left -= waiting.pop(best)
        parameters, macs = parameters + known[best].cost.parameters, macs + known[best].cost.macs
    how = str(config.kinds.blocks)
    return GrowthPlan(
        # In the order of the model.
        blocks=tuple(
            NewBlock(each.after, how, chosen[each.after] / each.number)
            for each in candidates
            for _ in range(each.number)
            if each.after in chosen
        ),
        criterion=config.criterion,
        budget=allowed if math.isfinite(allowed) else None,
        parameters=parameters,
        macs=macs,
        seed=config.growth_seed,
        freeze=config.freeze and bool(chosen),
        held_back=None if chosen else _held_back(candidates, config, allowed),
    )


def _held_back(candidates: Sequence[BlockCandidate], config: GrowthConfig, allowed: float) -> str:
    best = max(candidates, key=lambda each: each.gain)
    cheapest = min(in_unit(each.cost, config.budget_unit) for each in candidates)
    told = f"The best is a block after {best.after}, of {best.gain:.3g} nats."
    if cheapest > allowed:
        return (
            f"Budget: this event may add {allowed:,.0f} {config.budget_unit}, and the cheapest block costs "
            f"{cheapest:,}. {told}"
        )
    return (
        f"Gain: of {len(candidates)} blocks none that the budget of {allowed:,.0f} {config.budget_unit} allows would "
        f"gain anything on held-out samples. {told}"
    )
