"""From a curvature report to a plan: most predicted gain per cost, within the budget; no state, no random surprise."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..curvature import CurvatureReport, LayerCurvature
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.sites import Site
from .config import QUOTAS, GrowthConfig
from .costs import CostBook, count_parameters, plan_cost
from .drafting import branch_kind, widening_objection
from .history import GrowthHistory
from .macs import count_macs
from .operators import OPERATORS, Operator, default_operator
from .plan import GrowthPlan, LayerGrowth
from .rows import row_size


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
) -> GrowthPlan:
    """
    Choose which neurons grow, and how.

    Candidates are the significant neurons of the layers that may grow. They are ranked by predicted gain per added
    parameter (or multiply-accumulate) and taken one after the other while the budget lasts; a neuron grows by one
    operator at most. The same arguments give the same plan on every rank. The model is not changed.

    Args:
        report ([`~hf_saddle.CurvatureReport`]): The curvature of this model as it is, by all `config.criteria`.
        model ([`GrowablePreTrainedModel`]): The model.
        config ([`GrowthConfig`]): Where, how and how much.
        event (`int`, *optional*, defaults to 0): Index of the event, from 0.
        lr_ratio (`float`, *optional*, defaults to 1.0): Learning rate relative to its peak, for `schedule="lr"`.

    Returns:
        [`GrowthPlan`]: Possibly empty.

    Raises:
        ValueError: If the report does not fit the model, or the config asks for an operator that the model's branches
            do not allow, or names linears or layers that the model does not have.
    """
    check_where(model, config)
    allowed = event_budget(model, config, event, lr_ratio)
    kind = branch_kind(model)
    deepens = config.operator != "auto" and OPERATORS[config.operator].deepens
    if deepens and kind not in (None, OPERATORS[config.operator].kind):
        raise ValueError(
            f"`operator={config.operator!r}` makes other branch units than the model has ({kind!r}). A model keeps "
            "one kind: use `operator='auto'`."
        )
    candidates = list(_candidates(report, model, config))
    chosen = _choose(candidates, CostBook(model), config, allowed)
    growths = tuple(_growths(chosen, report, model, config, Counter(map(_layer, candidates))))
    cost = plan_cost(model, growths)
    return GrowthPlan(
        growths=growths,
        criterion=config.criterion,
        budget=allowed if math.isfinite(allowed) else None,
        parameters=cost.parameters,
        macs=cost.macs,
        seed=config.growth_seed,
    )


def event_budget(model: GrowablePreTrainedModel, config: GrowthConfig, event: int, lr_ratio: float = 1.0) -> float:
    """What an event may add to a model, in `config.budget_unit`; infinite without a limit."""
    return config.event_budget_for(event, remaining=remaining_budget(model, config), lr_ratio=lr_ratio)


def remaining_budget(model: GrowablePreTrainedModel, config: GrowthConfig) -> float:
    """
    What is left of the final size of a model, in `config.budget_unit`; infinite without a limit, negative if it is
    larger already.
    """
    by_macs = config.budget_unit == "macs"
    size = initial = count_macs(model) if by_macs else count_parameters(model)
    if model.growth_history is not None:
        start = GrowthHistory.from_model(model).initial
        initial = start.macs if by_macs else start.parameters
    return config.final_budget(initial) - size


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


def _candidates(report: CurvatureReport, model: GrowablePreTrainedModel, config: GrowthConfig) -> Iterator[_Candidate]:
    """Significant neurons of the layers that may grow, in the order of the report."""
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
        frozen = not module.weight.requires_grad
        elsewhere = (config.linears is not None and site.linear not in config.linears) or (
            config.layers is not None and site.block not in config.layers
        )
        if operator is None or frozen or elsewhere:
            continue
        fit = entry.significant & torch.isfinite(entry.gain) & (entry.gain > 0)
        neurons = torch.nonzero(fit).flatten().tolist()
        if len(neurons) >= config.layer_threshold:
            gains = entry.gain.tolist()
            yield from (_Candidate(entry, site, operator, neuron, gains[neuron]) for neuron in neurons)


def _choose(candidates: list[_Candidate], book: CostBook, config: GrowthConfig, allowed: float) -> list[_Candidate]:
    """Greedy by gain per cost, which depends on what was chosen before; what does not fit is passed over."""

    def cost(candidate: _Candidate) -> int:
        price = book.cost(candidate.entry.linear, candidate.operator, candidate.neuron)
        return price.macs if config.budget_unit == "macs" else price.parameters

    shares = [allowed / len(QUOTAS)] * len(QUOTAS) if config.quotas else [allowed]
    quota_of = {linear: index for index, group in enumerate(QUOTAS) for linear in group}
    taken: set[tuple[str, int]] = set()
    chosen = []
    # The sort is stable: ties keep the order of the model.
    for candidate in sorted(candidates, key=lambda candidate: -candidate.gain / cost(candidate)):
        path = candidate.entry.linear
        quota = quota_of[candidate.site.linear] if config.quotas else 0
        price = cost(candidate)
        if (path, candidate.neuron) in taken or price > shares[quota]:
            continue
        book.book_(path, candidate.operator, candidate.neuron)
        shares[quota] -= price
        taken.add((path, candidate.neuron))
        chosen.append(candidate)
    return chosen


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
