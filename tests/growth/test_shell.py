"""A shell, which has no values, says of a growth what the model itself comes to."""

import pytest
from family_cases import KINDS, family_plan
from test_blocks import block_model, places

from hf_saddle.growth import GrowthPlan, grow_, head_growth, prepare_growth
from hf_saddle.growth.records.block_records import WAYS, NewBlock
from hf_saddle.growth.surgery.shell import shell_of
from hf_saddle.models.blocks import block_paths
from hf_saddle.models.families import family_of


def plans(model, name):
    """Growth of every kind, of all layers that it is possible for."""
    yield family_plan(model, "zero_gain", [1, 2])
    yield family_plan(model, "split", [0])
    yield family_plan(model, "split", [0], depth=1)
    family = family_of(model.config.model_type)
    for how in ("new", "split") if not isinstance(family.heads, str) else ():
        yield GrowthPlan(tuple(head_growth(model, each.path, 1, how) for each in model.attentions()))
    paths = block_paths(model.base_model, model.config)
    # Behind a norm no new block is silent.
    for how in WAYS if family.audible(model.config) is None else ("stack",):
        after = [paths[place] for place in places(name, how)]
        yield GrowthPlan(blocks=tuple(NewBlock(path, how) for path in after))


@pytest.mark.parametrize("name", KINDS)
def test_a_shell_tells_what_a_growth_comes_to(name):
    model = block_model(name)
    grow_(model, family_plan(model, "zero_gain", [0, 1]))
    for plan in plans(model, name):
        event, told = (prepare_growth(each, plan).event for each in (model, shell_of(model)))
        for field in ("parameters_before", "parameters_after", "macs_before", "macs_after", "shapes", "skip_unit"):
            assert getattr(told, field) == getattr(event, field), field
        # Not every model has layers that can grow so.
        assert (told.parameters_after > told.parameters_before) == bool(plan)
