"""What growth takes on the machine that trains, measured by the first process for all."""

from typing import Any

from ...curvature.loss import Loss
from ...growth import GrowthConfig, GrowthPlan, LayerGrowth, head_growth
from ...growth.choice.block_gains import places_of_blocks
from ...growth.choice.candidates import operators_for
from ...growth.choice.timing import Kind, time_kinds
from ...growth.operators import HEAD_WAYS
from ...growth.records.block_records import NewBlock
from ...growth.records.timing_record import Timing
from ...models.modeling_saddle import GrowablePreTrainedModel
from ..checks.model_checks import growable_paths, growing_kinds, heads_that_grow
from ..distributed import Replicas


def time_growth(
    model: GrowablePreTrainedModel,
    batch: Any,
    config: GrowthConfig,
    loss: Loss,
    replicas: Replicas,
    known: Timing | None = None,
) -> Timing:
    """
    Time each kind of growth that a config lets a model have, as far as it is not known yet. All processes call this.

    `batch` is a probe batch of the first process; what is `known` stays. Returns the same on all processes; the model
    is as before afterwards.
    """

    def measure() -> Timing | None:
        return None if replicas.rank else time_kinds(model, batch, loss, _kinds(model, config, known), known)

    timing = replicas.from_first(replicas.together("Timing the growth", measure))
    assert timing is not None
    return timing


def _kinds(model: GrowablePreTrainedModel, config: GrowthConfig, known: Timing | None) -> dict[str, Kind]:
    """Of each kind of growth that is not known so much that its time can be seen."""
    kinds, growths, first = growing_kinds(model, config), dict[str, list[LayerGrowth]](), list[LayerGrowth]()
    copied: list[LayerGrowth] = []  # units
    paths = set(growable_paths(model, config)) if kinds.neurons else set()
    for site in model.growable_linears():
        for operator in operators_for(model, site, config) if site.path in paths else ():
            own = copied if site.nested and not operator.deepens else growths.setdefault(operator.name, [])
            own.append(LayerGrowth.by_hand(model, site.path, operator.name, range(site.module.neurons)))
            if operator.deepens and site.module.skip is None:
                first.append(LayerGrowth.by_hand(model, site.path, operator.name, [0]))
    if copied:
        growths.setdefault("zero_gain", copied)  # which they are timed as
    headed = heads_that_grow(model, config) if kinds.heads else []
    for way in kinds.ways:
        growths[HEAD_WAYS[way]] = [head_growth(model, path, 1, way) for path in headed]
    opening = {growth.operator for growth in first}
    found = {
        name: Kind(GrowthPlan(tuple(own)), GrowthPlan(tuple(first)) if name in opening else None)
        for name, own in growths.items()
    }
    if kinds.blocks is not None:
        after, number = places_of_blocks(model, config.layers, kinds.blocks)
        blocks = tuple(NewBlock(path, kinds.blocks) for path in after for _ in range(number))
        found[f"block_{kinds.blocks}"] = Kind(GrowthPlan(blocks=blocks))
    return {name: kind for name, kind in found.items() if known is None or name not in known.rates}
