"""Neurons that could grow: what a curvature report says of them, and the growths that some of them make."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator

import torch

from ...curvature import CurvatureReport, LayerCurvature
from ...models.modeling_saddle import GrowablePreTrainedModel
from ...models.sites import Site
from ..budget import Candidate
from ..config import GrowthConfig
from ..costs import Cost, CostBook
from ..operators import OPERATORS, Operator
from ..records.layer_growth import LayerGrowth
from ..surgery.drafting import branch_kind, widening_objection
from .reasons import Measured


# Candidates that pursuit chooses from, for each sample that chooses.
_OFFERED = 8


class NeuronCandidate(Candidate):
    """
    One neuron that could grow, with where its numbers are.

    Args:
        entry ([`~hf_saddle.LayerCurvature`]): What was measured of its linear.
        site ([`Site`]): The linear.
        way ([`Operator`]): How it would grow.
        neuron (`int`): The neuron.
        gain (`float`): What it would gain alone.
    """

    def __init__(self, entry: LayerCurvature, site: Site, way: Operator, neuron: int, gain: float):
        self.entry, self.site, self.way, self.neuron, self.gain = entry, site, way, neuron, gain
        self.operator, self.place = way.name, site.linear
        self.once = entry.linear, neuron
        self.group = entry.linear, way.name  # whose neurons make one growth
        self.opens = site.path if way.deepens and site.module.skip is None else None

    @property
    def timed_as(self) -> str:
        """The operator whose time it takes for what it costs: copies of units take that of new ones."""
        return "zero_gain" if self.site.nested else self.operator

    def cost(self, book: CostBook) -> Cost:
        """What it adds, after what is in a book."""
        return book.cost(self.entry.linear, self.way, self.neuron)

    def book_(self, book: CostBook) -> None:
        """Note that it grows."""
        book.book_(self.entry.linear, self.way, self.neuron)


def operator_for(
    criterion: str, model: GrowablePreTrainedModel, site: Site, kind: str | None, config: GrowthConfig
) -> Operator | None:
    """How neurons of a layer that a criterion ranks would grow, with a kind of units; `None` if they cannot."""
    name = config.kinds.operator_for(criterion, kind)
    if name is None:
        return None
    operator = OPERATORS[name]
    if operator.deepens:
        fits = site.depth < config.max_depth and operator.can_deepen(site)
    else:
        fits = operator.can_widen(site, kind) and widening_objection(model, site, operator) is None
    return operator if fits else None


def operators_for(model: GrowablePreTrainedModel, site: Site, config: GrowthConfig) -> list[Operator]:
    """All ways in which neurons of a layer may grow."""
    kind = branch_kind(model)
    found = {operator_for(criterion, model, site, kind, config): None for criterion in config.ranking}
    return [operator for operator in found if operator is not None]


def limit_of(site: Site, config: GrowthConfig) -> str:
    """Why a layer may not grow, in words; empty for one that may."""
    if config.linears is not None and site.linear not in config.linears:
        return "not in `linears`"
    if config.layers is not None and site.block not in config.layers:
        return "not in `layers`"
    return "" if site.module.weight.requires_grad else "frozen"


def measured_by(report: CurvatureReport, model: GrowablePreTrainedModel, config: GrowthConfig) -> Iterator[Measured]:
    """The entries of a report that rank neurons, in its order, with how they would grow or why they may not."""
    known = {site.path: site for site in model.growable_linears()}
    kind = branch_kind(model)
    for entry in report.layers:
        if entry.criterion not in config.ranking or entry.linear not in known:
            continue
        site, module = known[entry.linear], known[entry.linear].module
        operator = operator_for(entry.criterion, model, site, kind, config)
        if operator is not None and entry.direction.shape != (module.neurons, operator.row_size(site)):
            raise ValueError(
                f"The report's directions of {entry.linear} have shape {tuple(entry.direction.shape)}, the model's "
                f"layer needs {(module.neurons, operator.row_size(site))}. Measure anew after a growth."
            )
        limit = limit_of(site, config)
        if not limit and operator is None:
            deep = f"as deep as `max_depth={config.max_depth}` allows"
            limit = "not widenable" if entry.criterion == "width" else deep
        yield Measured(entry, site, operator, limit)


def found_by(measured: Iterable[Measured], config: GrowthConfig) -> Iterator[NeuronCandidate]:
    """Significant neurons of the layers that may grow, in the order of the report."""
    for each in measured:
        if each.limit or each.operator is None:
            continue
        neurons = torch.nonzero(each.fit).flatten().tolist()
        if len(neurons) >= config.layer_threshold:
            gains = each.entry.gain.tolist()
            yield from (
                NeuronCandidate(each.entry, each.site, each.operator, neuron, gains[neuron]) for neuron in neurons
            )


def groups_of(candidates: Iterable[NeuronCandidate]) -> dict[tuple[str, str], list[NeuronCandidate]]:
    groups: dict[tuple[str, str], list[NeuronCandidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.group, []).append(candidate)
    return groups


def offered_of(candidates: list[NeuronCandidate], report: CurvatureReport) -> list[NeuronCandidate]:
    """The best of every linear and operator, in the order of the report."""
    groups = groups_of(candidates)
    most = math.ceil(_OFFERED * report.samples / max(1, len(groups)))
    best = [sorted(group, key=lambda candidate: -candidate.gain)[:most] for group in groups.values()]
    kept = set(map(id, itertools.chain.from_iterable(best)))
    return [candidate for candidate in candidates if id(candidate) in kept]


def growths_of(
    chosen: list[NeuronCandidate],
    report: CurvatureReport,
    model: GrowablePreTrainedModel,
    config: GrowthConfig,
    numbers: Counter[tuple[str, str]],
) -> Iterator[LayerGrowth]:
    """The chosen neurons by layer and operator, in the order of the model."""
    order = {site.path: index for index, site in enumerate(model.growable_linears())}
    groups = groups_of(chosen)
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
