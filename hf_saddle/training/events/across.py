"""The decision of an event that several kinds of growth compete for: all measured on the same samples."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...curvature import CurvatureReport
from ...curvature.loss import Loss
from ...curvature.samples import sample_count
from ...growth import GrowthConfig, GrowthHistory, GrowthPlan, block_candidates, event_budget, score_heads
from ...growth.choice.across import Across, Chosen
from ...growth.choice.halves import halves
from ...growth.choice.parts import Part, block_part, head_part, neuron_part
from ...growth.costs import Cost
from ...growth.operators import SCALED
from ...growth.surgery.grow import Growing, added_by
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import growing_kinds, heads_that_grow
from ..distributed import Replicas
from .measuring import candidates_of, loss_before, measure_neurons, score_neurons, try_step
from .moment import Moment
from .probe import event_seed
from .timed import time_growth


# New heads that are tried in each attention module.
_NEW_HEADS = 2


def decide_across(
    model: GrowablePreTrainedModel,
    batches: Sequence[Any],
    config: GrowthConfig,
    moment: Moment,
    *,
    loss: Loss,
    replicas: Replicas,
    growing: Growing,
) -> GrowthPlan:
    """
    The plan that all processes agree on, of neurons, heads and blocks together.

    One half of the probe chooses, the other half judges. What moves at once is tried on the samples that judge; what
    starts at rest, new heads and blocks, is judged by its scores.
    """
    choosing, judging = halves(batches, replicas)
    together: dict[str, Any] = {"loss": loss, "replicas": replicas, "growing": growing}
    parts, report = _measured(model, choosing, judging, config, event=moment.event, **together)
    across = Across(parts, report, model, config)
    timing = None
    if config.budget_unit == "seconds":
        known = GrowthHistory.from_model(model).timing or moment.timing
        timing = time_growth(model, batches[0], config, loss, replicas, known)
    allowed = event_budget(model, config, moment.event, moment.lr_ratio, moment.to_come, timing)
    chosen = replicas.together("Planning the growth", lambda: across.choose(allowed, timing))
    plan = replicas.agree_on(across.plan(chosen, allowed))
    columns, entries = chosen.moving(plan)
    if columns is not None:
        before = loss_before(model, judging, loss, replicas)
        # What starts at rest does nothing to the loss.
        tried = replace(plan, growths=tuple(growth for growth in plan.growths if growth.operator in SCALED), blocks=())
        trial = try_step(model, tried, columns, judging, config, before=before, entries=entries, **together)
        plan = trial.paying(plan, config)
        if plan.held_back is not None:
            # What starts at rest was not tried: it stays if its scores speak for it alone.
            rest = chosen.resting()
            chosen = rest if across.pays(rest) else Chosen((), None, plan.held_back)
            plan = across.plan(chosen, allowed)
    cost = added_by(model, plan) if plan else Cost(0, 0)
    if timing is not None:
        timing = replace(timing, added=timing.added + (across.seconds(plan, chosen, timing) if plan else 0.0))
    return replicas.agree_on(replace(plan, parameters=cost.parameters, macs=cost.macs, timing=timing))


def _measured(
    model: GrowablePreTrainedModel,
    choosing: Sequence[Any],
    judging: Sequence[Any],
    config: GrowthConfig,
    *,
    event: int,
    loss: Loss,
    replicas: Replicas,
    growing: Growing,
) -> tuple[list[Part], CurvatureReport | None]:
    """The candidates of all kinds, with scores of the same samples in the same order."""
    kinds, parts, report = growing_kinds(model, config), [], None
    if kinds.neurons:
        report = measure_neurons(model, choosing, config, event=event, loss=loss, replicas=replicas)
        found = report
        offered = replicas.together("Looking for what may grow", lambda: candidates_of(found, model, config))
        if offered:
            scores = score_neurons(model, offered, choosing, judging, loss=loss, replicas=replicas)
            parts.append(neuron_part(report, model, config, scores))
    if kinds.heads:
        heads = score_heads(
            model,
            choosing,
            kinds.ways,
            judging=judging,
            paths=heads_that_grow(model, config),
            candidates=_NEW_HEADS,
            loss=loss,
            seed=event_seed(config, event) % 2**31,
            ranks=replicas,
            growing=growing,
        )
        parts.append(head_part(heads))
    if kinds.blocks is not None:
        both, how = [*choosing, *judging], kinds.blocks
        blocks = block_candidates(
            model, both, loss=loss, places=config.layers, how=how, ranks=replicas, growing=growing
        )
        own = [torch.full((sample_count(batch),), place >= len(choosing)) for place, batch in enumerate(both)]
        parts.append(block_part(blocks, torch.cat(replicas.gather(torch.cat(own))), how))
    return parts, report
