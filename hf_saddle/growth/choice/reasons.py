"""Why nothing grows at an event: which option held the best candidate back, with its numbers."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...curvature import CurvatureReport, LayerCurvature
from ...models.sites import Site
from ..config import GrowthConfig
from ..operators import Operator
from ..paper import QUOTAS


@dataclass(frozen=True)
class Measured:
    """A linear that was measured by one criterion, with how it would grow, or why it may not."""

    entry: LayerCurvature
    site: Site
    operator: Operator | None
    limit: str  # empty for a linear that may grow

    @property
    def fit(self) -> Tensor:
        """Which neurons would be candidates, shape `(n,)`."""
        fit: Tensor = self.entry.significant & torch.isfinite(self.entry.gain) & (self.entry.gain > 0)
        return fit


def held_back(
    measured: Sequence[Measured],
    report: CurvatureReport,
    config: GrowthConfig,
    allowed: float,
    cheapest: float,
    judged: tuple[float, float, int] | None = None,
) -> str:
    """
    Why no neuron was chosen: layer limits, significance, threshold, held-out samples or budget, whichever the last
    candidate fell to.

    Args:
        measured (`Sequence[Measured]`): All linears that were measured, in the order of the report.
        report ([`~hf_saddle.CurvatureReport`]): The measurement.
        config ([`GrowthConfig`]): The options.
        allowed (`float`): Budget of the event, in `config.budget_unit`.
        cheapest (`float`): What the cheapest candidate costs.
        judged (`tuple[float, float, int]`, *optional*): What scores of held-out samples say of the best plan that
            fits the budget: the decrease of the loss, its standard error, and the number of units.
    """
    if not measured:
        skipped = "".join(f"; {name}: {reason}" for name, reason in list(report.skipped.items())[:1])
        return f"Nothing was measured by {' or '.join(config.ranking)} where the model may grow{skipped}."
    open_ = [each for each in measured if not each.limit]
    if not open_:
        limits = ", ".join(f"{count} {limit}" for limit, count in Counter(each.limit for each in measured).items())
        return f"Layer limits: none of {len(measured)} measured linears may grow ({limits}). {_best(measured)}"
    counts = [int(each.fit.sum()) for each in open_]
    if not any(counts):
        neurons = sum(each.entry.neurons for each in open_)
        return (
            f"Significance: none of {neurons:,} neurons in {len({each.site.path for each in open_})} linears is a "
            f"candidate. {_best(open_)} `significance={config.significance:g}` is asked for; more "
            "`probe_samples` make the errors smaller."
        )
    best = _best([each for each, count in zip(open_, counts, strict=True) if count], fit_only=True)
    if max(counts) < config.layer_threshold:
        return (
            f"Threshold: no linear has `layer_threshold={config.layer_threshold}` candidates, the most are "
            f"{max(counts)} of {sum(counts)}. {best}"
        )
    if judged is not None:
        return f"{unsupported(*judged, f'{sum(counts)} candidates', config)} {best}"
    # Rounded down: what costs as much as that fits.
    share = f"each of {len(QUOTAS)} quotas of this event may add {math.floor(allowed / len(QUOTAS)):,}"
    budget = share if config.quotas else f"this event may add {math.floor(allowed):,}"
    return (
        f"Budget: there are {sum(counts)} candidates, but {budget} {config.budget_unit}, and the cheapest of them "
        f"costs {cheapest:,}. {best}"
    )


def unsupported(gain: float, error: float, units: int, candidates: str, config: GrowthConfig) -> str:
    """Why nothing grows though there are candidates: samples that did not choose them gain too little."""
    return (
        f"Held-out samples: of {candidates} the best {units} together would lower the loss of samples that "
        f"did not choose them by {gain:.3g} ± {error:.2g}, and `significance={config.significance:g}` standard errors "
        "are asked for; more `probe_samples` make the error smaller."
    )


def amount(value: float) -> str:
    """A size in any unit: a whole number of parameters or MACs, or seconds, which are small."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def no_budget(size: float, initial: float, final: float, config: GrowthConfig, event: int) -> str:
    """Why nothing is measured: the model is as large as it may become, or the event has no share."""
    if size >= final:
        return (
            f"Budget: it is spent. The model has {amount(size)} {config.budget_unit}, {amount(initial)} before its "
            f"first event, and may have {amount(final)}."
        )
    if event >= len(config.times):
        return f"Budget: event {event + 1} is beyond the {len(config.times)} that share it."
    return (
        f"Budget: this event may add nothing (`event_budget={config.event_budget}`, `schedule={config.schedule!r}`)."
    )


def _best(measured: Sequence[Measured], fit_only: bool = False) -> str:
    """The neuron that comes nearest to being chosen: by standard errors from zero, then by its own gain."""
    found: list[tuple[float, float, Measured, int]] = []
    for each in measured:
        entry = each.entry
        eligible = each.fit if fit_only else torch.isfinite(entry.gain) & (entry.gain > 0)
        # Errors of controls are zero: the gain decides alone.
        distance = torch.where(entry.standard_error > 0, entry.eigenvalue.abs() / entry.standard_error, 0.0)
        rank = distance if bool(distance.any()) else entry.gain
        if bool(eligible.any()):
            neuron = int(torch.where(eligible, rank, -torch.inf).argmax())
            found.append((float(distance[neuron]), float(entry.gain[neuron]), each, neuron))
    if not found:
        return "No eigenvalue has the sign that growth needs."
    errors, gain, best, neuron = max(found, key=lambda item: item[:2])
    entry = best.entry
    away = f", {errors:.3g} standard errors from zero" if errors > 0 else ""
    return (
        f"The best is neuron {neuron} of {entry.linear} ({entry.criterion}): eigenvalue "
        f"{float(entry.eigenvalue[neuron]):.3g} ± {float(entry.standard_error[neuron]):.2g}{away}, ranked by "
        f"{gain:.3g}."
    )
