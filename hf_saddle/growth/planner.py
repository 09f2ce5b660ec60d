"""From a curvature report to a plan: most predicted gain per cost, within the budget; no state, no random surprise."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from ..curvature import CurvatureReport, LayerCurvature, UnitScores
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.sites import Site
from .config import GrowthConfig
from .costs import CostBook, count_parameters, plan_cost
from .drafting import branch_kind, widening_objection
from .history import GrowthHistory
from .macs import count_macs
from .natural_step import NEXT_STEP, scaled, supported, take_natural_step
from .operators import OPERATORS, Operator, default_operator
from .paper import QUOTAS
from .plan import GrowthPlan, LayerGrowth
from .pursuit import pursue
from .reasons import Measured, held_back
from .rows import row_size


# Candidates that pursuit chooses from, for each sample that chooses.
_OFFERED = 8


@dataclass(frozen=True)
class _Candidate:
    """One neuron that could grow, with where its numbers are."""

    entry: LayerCurvature
    site: Site
    operator: Operator
    neuron: int
    gain: float


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
    plan, own = choose_growths(report, model, config, event=event, lr_ratio=lr_ratio, to_come=to_come, scores=scores)
    return priced(model, plan if own is None else take_natural_step(plan, own, config.natural_step))


def choose_growths(
    report: CurvatureReport,
    model: GrowablePreTrainedModel,
    config: GrowthConfig,
    *,
    event: int,
    lr_ratio: float,
    to_come: int | None,
    scores: UnitScores | None,
) -> tuple[GrowthPlan, UnitScores | None]:
    """What [`plan_growth`] chooses, before it takes a step, and the scores of its units, if there are any."""
    check_where(model, config)
    allowed = event_budget(model, config, event, lr_ratio, to_come)
    kind = branch_kind(model)
    deepens = config.operator != "auto" and OPERATORS[config.operator].deepens
    if deepens and kind not in (None, OPERATORS[config.operator].kind):
        raise ValueError(
            f"`operator={config.operator!r}` makes other branch units than the model has ({kind!r}). A model keeps "
            "one kind: use `operator='auto'`."
        )
    measured = list(_measured(report, model, config))
    found = list(_candidates(measured, config))
    candidates = found if scores is None else _offered(found, report)
    budget = _Budget(candidates, CostBook(model), config, allowed)
    cheapest = min(map(budget.cost, candidates), default=0)
    judged: tuple[float, float, int] | None = None
    if scores is None:
        chosen = _by_gain(candidates, budget)
    else:
        chosen, judged = _by_pursuit(candidates, budget, scores, config)
    members = [candidates[index] for index in chosen]
    growths = tuple(_growths(members, report, model, config, Counter(map(_layer, found))))
    plan = GrowthPlan(
        growths=growths,
        criterion=config.criterion,
        budget=allowed if math.isfinite(allowed) else None,
        seed=config.growth_seed,
        candidates=dict(Counter(candidate.operator.name for candidate in found)),
        held_back=None if chosen else held_back(measured, report, config, allowed, cheapest, judged),
    )
    if scores is None or not plan:
        return plan, None
    columns = {(*_layer(candidates[index]), candidates[index].neuron): index for index in chosen}
    order = [columns[growth.linear, growth.operator, neuron] for growth in growths for neuron in growth.neurons]
    return plan, scores.of(order)


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
    candidates = list(_candidates(_measured(report, model, config), config))
    numbers = Counter(map(_layer, candidates))
    groups = _groups(_offered(candidates, report))
    return tuple(growth for group in groups.values() for growth in _growths(group, report, model, config, numbers))


def _groups(candidates: Iterable[_Candidate]) -> dict[tuple[str, str], list[_Candidate]]:
    groups: dict[tuple[str, str], list[_Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(_layer(candidate), []).append(candidate)
    return groups


def _offered(candidates: list[_Candidate], report: CurvatureReport) -> list[_Candidate]:
    """The best of every linear and operator, in the order of the report."""
    groups = _groups(candidates)
    most = math.ceil(_OFFERED * report.samples / max(1, len(groups)))
    best = [sorted(group, key=lambda candidate: -candidate.gain)[:most] for group in groups.values()]
    kept = set(map(id, itertools.chain.from_iterable(best)))
    return [candidate for candidate in candidates if id(candidate) in kept]


def event_budget(
    model: GrowablePreTrainedModel,
    config: GrowthConfig,
    event: int,
    lr_ratio: float = 1.0,
    to_come: int | None = None,
) -> float:
    """What an event may add to a model, in `config.budget_unit`; infinite without a limit."""
    size, initial, final = sizes(model, config)
    return config.event_budget_for(event, remaining=final - size, lr_ratio=lr_ratio, to_come=to_come)


def sizes(model: GrowablePreTrainedModel, config: GrowthConfig) -> tuple[int, int, float]:
    """The size of a model as it is, before its first event, and at most, in `config.budget_unit`."""
    by_macs = config.budget_unit == "macs"
    size = initial = count_macs(model) if by_macs else count_parameters(model)
    if model.growth_history is not None:
        start = GrowthHistory.from_model(model).initial
        initial = start.macs if by_macs else start.parameters
    return size, initial, config.final_budget(initial)


def _layer(candidate: _Candidate) -> tuple[str, str]:
    return candidate.entry.linear, candidate.operator.name


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


def _operator(
    entry: LayerCurvature, model: GrowablePreTrainedModel, site: Site, kind: str | None, config: GrowthConfig
) -> Operator | None:
    """How the neurons of a layer would grow; `None` if they cannot."""
    name = default_operator(entry.criterion, kind) if config.operator == "auto" else config.operator
    if name is None:
        return None
    operator = OPERATORS[name]
    if operator.deepens:
        fits = site.depth < config.max_depth and operator.can_deepen(site)
    else:
        fits = operator.can_widen(site, kind) and widening_objection(model, site, operator) is None
    return operator if fits else None


def _measured(report: CurvatureReport, model: GrowablePreTrainedModel, config: GrowthConfig) -> Iterator[Measured]:
    """The entries of a report that rank neurons, in its order, with how they would grow or why they may not."""
    known = {site.path: site for site in model.growable_linears()}
    kind = branch_kind(model)
    for entry in report.layers:
        if entry.criterion not in config.ranking or entry.linear not in known:
            continue
        site, module = known[entry.linear], known[entry.linear].module
        operator = _operator(entry, model, site, kind, config)
        if operator is not None and entry.direction.shape != (module.neurons, row_size(site, operator)):
            raise ValueError(
                f"The report's directions of {entry.linear} have shape {tuple(entry.direction.shape)}, the model's "
                f"layer needs {(module.neurons, row_size(site, operator))}. Measure anew after a growth."
            )
        limit = ""
        if config.linears is not None and site.linear not in config.linears:
            limit = "not in `linears`"
        elif config.layers is not None and site.block not in config.layers:
            limit = "not in `layers`"
        elif not module.weight.requires_grad:
            limit = "frozen"
        elif operator is None:
            limit = (
                f"as deep as `max_depth={config.max_depth}` allows" if entry.criterion != "width" else "not widenable"
            )
        yield Measured(entry, site, operator, limit)


def _candidates(measured: Iterable[Measured], config: GrowthConfig) -> Iterator[_Candidate]:
    """Significant neurons of the layers that may grow, in the order of the report."""
    for each in measured:
        if each.limit or each.operator is None:
            continue
        neurons = torch.nonzero(each.fit).flatten().tolist()
        if len(neurons) >= config.layer_threshold:
            gains = each.entry.gain.tolist()
            yield from (_Candidate(each.entry, each.site, each.operator, neuron, gains[neuron]) for neuron in neurons)


class _Budget:
    """What is left of the budget of an event while neurons are chosen."""

    def __init__(self, candidates: list[_Candidate], book: CostBook, config: GrowthConfig, allowed: float):
        self.candidates, self.book, self.unit = candidates, book, config.budget_unit
        self.shares = [allowed / len(QUOTAS)] * len(QUOTAS) if config.quotas else [allowed]
        groups = enumerate(QUOTAS) if config.quotas else ()
        self.quota_of = {linear: index for index, group in groups for linear in group}

    def cost(self, candidate: _Candidate) -> int:
        """What a candidate adds, which depends on what was chosen before."""
        price = self.book.cost(candidate.entry.linear, candidate.operator, candidate.neuron)
        return price.macs if self.unit == "macs" else price.parameters

    def admit(self, index: int) -> bool:
        """Pay for a candidate, if it fits into what is left."""
        candidate = self.candidates[index]
        quota, price = self.quota_of.get(candidate.site.linear, 0), self.cost(candidate)
        if price > self.shares[quota]:
            return False
        self.book.book_(candidate.entry.linear, candidate.operator, candidate.neuron)
        self.shares[quota] -= price
        return True


def _by_gain(candidates: list[_Candidate], budget: _Budget) -> list[int]:
    """Greedy by gain per cost; what does not fit is passed over."""
    ratios = [-candidate.gain / budget.cost(candidate) for candidate in candidates]
    taken: set[tuple[str, int]] = set()
    chosen = []
    # The sort is stable: ties keep the order of the model.
    for index in sorted(range(len(candidates)), key=ratios.__getitem__):
        neuron = _neuron(candidates[index])
        if neuron not in taken and budget.admit(index):
            taken.add(neuron)
            chosen.append(index)
    return chosen


def _by_pursuit(
    candidates: list[_Candidate], budget: _Budget, scores: UnitScores, config: GrowthConfig
) -> tuple[list[int], tuple[float, float, int] | None]:
    """Greedy by what a neuron adds to those already chosen, per cost, as far as held-out samples gain."""
    if scores.values.shape[1] != len(candidates):
        raise ValueError(
            f"`scores` has {scores.values.shape[1]} units, the report has {len(candidates)} candidates: score "
            "`candidate_growths(report, model, config)`."
        )
    if not candidates:
        return [], None
    numbers: dict[tuple[str, int], int] = {}
    neurons = [numbers.setdefault(_neuron(candidate), len(numbers)) for candidate in candidates]
    device = scores.values.device
    order = pursue(
        scaled(scores)[~scores.judges],
        scores.splits,
        torch.tensor([budget.cost(candidate) for candidate in candidates], dtype=torch.float64, device=device),
        torch.tensor(neurons, device=device),
        budget.admit,
    )
    return supported(scores, order, config.natural_step or NEXT_STEP, config.significance)


def _neuron(candidate: _Candidate) -> tuple[str, int]:
    return candidate.entry.linear, candidate.neuron


def _growths(
    chosen: list[_Candidate],
    report: CurvatureReport,
    model: GrowablePreTrainedModel,
    config: GrowthConfig,
    numbers: Counter[tuple[str, str]],
) -> Iterator[LayerGrowth]:
    """The chosen neurons by layer and operator, in the order of the model."""
    order = {site.path: index for index, site in enumerate(model.growable_linears())}
    groups: dict[tuple[str, str], list[_Candidate]] = {}
    for candidate in chosen:
        groups.setdefault(_layer(candidate), []).append(candidate)
    for path, name in sorted(groups, key=lambda key: (order[key[0]], key[1])):
        members, operator = sorted(groups[path, name], key=lambda candidate: candidate.neuron), OPERATORS[name]
        entry = members[0].entry
        neurons = [member.neuron for member in members]
        eigenvalues = entry.eigenvalue[neurons].float().cpu()
        along = report[path, "random"] if config.directions == "random" else entry
        steps = entry.step[neurons].float().cpu()
        if operator.kind == "gain":
            # The measured step suits a change of the neuron's own row. A unit with a gain changes nothing by its
            # length, but a short one needs a large gain, under which an update of its row changes much. With this one
            # the pre-activation of the unit has a root mean square of 1.
            steps = 1.0 / along.response[neurons].float().cpu()
        gains = torch.full((len(neurons),), operator.gain)
        yield LayerGrowth(
            linear=path,
            operator=name,
            neurons=tuple(neurons),
            directions=along.direction[neurons].float().cpu(),
            steps=steps,
            gains=gains,
            predicted_gain=entry.gain[neurons].float().cpu(),
            eigenvalues=eigenvalues,
            candidates=numbers[path, name],
        )
