"""From a curvature report to a plan: most predicted gain per cost, within the budget; no state, no random surprise."""

import math
from collections import Counter
from dataclasses import replace

from ...curvature import CurvatureReport, UnitScores
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..budget import Budget, event_budget
from ..config import GrowthConfig
from ..costs import CostBook, plan_cost
from ..operators import OPERATORS
from ..paper import QUOTAS
from ..records.layer_growth import LayerGrowth
from ..records.plan import GrowthPlan
from ..surgery.drafting import branch_kind
from .candidates import NeuronCandidate, found_by, groups_of, growths_of, measured_by, offered_of
from .natural_step import NEXT_STEP, columns_of, take_natural_step
from .pursuit import choose_together
from .reasons import held_back


def plan_growth(
    report: CurvatureReport,
    model: GrowablePreTrainedModel,
    config: GrowthConfig,
    *,
    event: int = 0,
    lr_ratio: float = 1.0,
    to_come: int | None = None,
    scores: UnitScores | None = None,
) -> GrowthPlan:
    """
    Choose which neurons grow, and how.

    Candidates are the significant neurons of the layers that may grow. With `scores` they are taken by what they add
    to those already chosen, per added parameter (or multiply-accumulate), while the budget lasts and held-out samples
    gain, and the plan takes `config.natural_step`. Without, they are ranked one by one by the gain of the report per
    parameter, until the budget is spent, and start at rest. A neuron grows by one operator at most. The same arguments
    give the same plan on every rank. The model is not changed.

    Args:
        report ([`~hf_saddle.CurvatureReport`]): The curvature of this model as it is, by all `config.criteria`.
        model ([`GrowablePreTrainedModel`]): The model.
        config ([`GrowthConfig`]): Where, how and how much.
        event (`int`, *optional*, defaults to 0): Index of the event, from 0.
        lr_ratio (`float`, *optional*, defaults to 1.0): Learning rate relative to its peak, for `schedule="lr"`.
        to_come (`int`, *optional*): Events that share what is left of the size, this one included; see
            [`GrowthConfig.event_budget_for`].
        scores ([`~hf_saddle.curvature.UnitScores`], *optional*): Of `candidate_growths(report, model, config)`.

    Returns:
        [`GrowthPlan`]: Possibly empty; `held_back` says why then.

    Raises:
        ValueError: If the report does not fit the model, or the config asks for an operator that the model's branches
            do not allow, or names linears or layers that the model does not have.
    """
    allowed = event_budget(model, config, event, lr_ratio, to_come)
    plan, own = choose_growths(report, model, config, allowed, scores)
    return priced(model, plan if own is None else take_natural_step(plan, own, config.natural_step))


def choose_growths(
    report: CurvatureReport,
    model: GrowablePreTrainedModel,
    config: GrowthConfig,
    allowed: float,
    scores: UnitScores | None,
) -> tuple[GrowthPlan, UnitScores | None]:
    """
    What [`plan_growth`] chooses, before it takes a step, for an event that may add what is `allowed`, and the scores
    of its units, if there are any.
    """
    check_where(model, config)
    if config.kinds.several or config.kinds.only_blocks or config.budget_unit == "seconds":
        raise ValueError(
            f"`plan_growth` plans neurons, by parameters or MACs. With `operator={config.operator!r}` and "
            f"`budget_unit={config.budget_unit!r}` kinds are measured, and timed, by an event: use `growth_event_` of "
            "`hf_saddle.training`, or `plan_heads` and `plan_blocks` for one kind."
        )
    check_branches(model, config)
    measured = list(measured_by(report, model, config))
    found = list(found_by(measured, config))
    candidates = found if scores is None else offered_of(found, report)
    budget = Budget(CostBook(model), config, allowed)
    cheapest = min(map(budget.price, candidates), default=0)
    judged: tuple[float, float, int] | None = None
    if scores is None:
        chosen = _by_gain(candidates, budget)
    else:
        check_scores(scores, candidates)
        share = config.natural_step or NEXT_STEP
        chosen, judged = choose_together(candidates, columns_of(scores), budget, share, config.significance)
    members = [candidates[index] for index in chosen]
    growths = tuple(growths_of(members, report, model, config, Counter(each.group for each in found)))
    plan = GrowthPlan(
        growths=growths,
        criterion=config.criterion,
        budget=allowed if math.isfinite(allowed) else None,
        seed=config.growth_seed,
        candidates=dict(Counter(candidate.operator for candidate in found)),
        held_back=None if chosen else held_back(measured, report, config, allowed, cheapest, judged),
    )
    if scores is None or not plan:
        return plan, None
    columns = {(*candidates[index].group, candidates[index].neuron): index for index in chosen}
    order = [columns[growth.linear, growth.operator, neuron] for growth in growths for neuron in growth.neurons]
    return plan, scores.of(order)


def check_branches(model: GrowablePreTrainedModel, config: GrowthConfig) -> None:
    """Raise a `ValueError` if a config asks for other branch units than a model has."""
    kind = branch_kind(model)
    for name in config.kinds.neurons:
        if name in OPERATORS and OPERATORS[name].deepens and kind not in (None, OPERATORS[name].kind):
            raise ValueError(
                f"`operator={name!r}` makes other branch units than the model has ({kind!r}). A model keeps one kind: "
                "use `operator='auto'`."
            )


def check_scores(scores: UnitScores, candidates: list[NeuronCandidate]) -> None:
    """Raise a `ValueError` if scores are of others than these candidates."""
    if scores.values.shape[1] != len(candidates):
        raise ValueError(
            f"`scores` has {scores.values.shape[1]} units, the report has {len(candidates)} candidates: score "
            "`candidate_growths(report, model, config)`."
        )


def priced(model: GrowablePreTrainedModel, plan: GrowthPlan) -> GrowthPlan:
    """A plan that says what it adds to a model."""
    cost = plan_cost(model, plan.growths)
    return replace(plan, parameters=cost.parameters, macs=cost.macs)


def candidate_growths(
    report: CurvatureReport, model: GrowablePreTrainedModel, config: GrowthConfig
) -> tuple[LayerGrowth, ...]:
    """
    What pursuit chooses from, layer by layer and operator by operator, to be scored by [`score_growths`].

    No more units are chosen than there are samples to tell them apart. So of every linear and operator only the best
    are offered by their own gain, together about eight times as many, which bounds time and memory of the scores.
    """
    candidates = list(found_by(measured_by(report, model, config), config))
    numbers = Counter(each.group for each in candidates)
    groups = groups_of(offered_of(candidates, report))
    return tuple(growth for group in groups.values() for growth in growths_of(group, report, model, config, numbers))


def check_where(model: GrowablePreTrainedModel, config: GrowthConfig) -> None:
    """
    Verify that a model has the linears and layers that a config names.

    Raises:
        ValueError: If it lacks one, or if the quotas of the paper do not fit its linears.
    """
    sites = list(model.growable_linears())
    linears, blocks = list(dict.fromkeys(site.linear for site in sites)), 1 + max(site.block for site in sites)
    unknown = [linear for linear in config.linears or () if linear not in linears]
    if unknown:
        raise ValueError(f"`linears` names {unknown}, which the model does not have. It has {', '.join(linears)}.")
    beyond = [layer for layer in config.layers or () if layer >= blocks]
    if beyond:
        raise ValueError(f"`layers` of the GrowthConfig names {beyond}, but the model has {blocks}, counted from 0.")
    if config.quotas and set(linears) != {linear for group in QUOTAS for linear in group}:
        raise ValueError(
            f"`quotas=True` shares the budget between the linears of a ViT or DeiT, but this model has "
            f"{', '.join(linears)}. Use `quotas=False`."
        )


def _by_gain(candidates: list[NeuronCandidate], budget: Budget) -> list[int]:
    """Greedy by gain per cost; what does not fit is passed over."""
    ratios = [-candidate.gain / budget.price(candidate) for candidate in candidates]
    taken: set[tuple[str, int]] = set()
    chosen = []
    # The sort is stable: ties keep the order of the model.
    for index in sorted(range(len(candidates)), key=ratios.__getitem__):
        once = candidates[index].once
        if once not in taken and budget.admit(candidates[index]):
            taken.add(once)
            chosen.append(index)
    return chosen
