"""Options of version 0.1: saved configs are read as they were meant, code with old names works with a warning."""

import copy
import dataclasses
import json
import math
import pickle
import warnings
from pathlib import Path

import pytest

from hf_saddle.growth import GrowthConfig, PaperGrowthConfig
from hf_saddle.growth.old_names import refuse_options


ROOT = Path(__file__).parents[2]
# What version 0.1 wrote of a `GrowthConfig()`.
OLD = {
    "warmup": 10,
    "interval": 10,
    "unit": "epochs",
    "num_events": 5,
    "stop": None,
    "linears": None,
    "layers": None,
    "layer_threshold": 1,
    "max_per_layer": None,
    "max_depth": 2,
    "criterion": "auto",
    "operator": "auto",
    "step_size": 0.2,
    "unit_scale": 1.0,
    "gain_init": 0.0,
    "line_search": False,
    "both_ends": True,
    "directions": "whitened",
    "significance": 2.0,
    "budget": 1.5,
    "budget_unit": "parameters",
    "event_budget": None,
    "schedule": "constant",
    "quotas": False,
    "probe_samples": 1024,
    "probe_batch_size": 64,
    "growth_seed": 0,
}
PAPER = {
    "warmup": 50,
    "interval": 30,
    "num_events": 9,
    "layer_threshold": 60,
    "max_depth": 9,
    "criterion": "paper_score",
    "operator": "residual_pair",
    "significance": 0.0,
    "budget": None,
    "event_budget": 580_000,
    "schedule": "lr",
    "quotas": True,
}
MEANT = [
    ({}, GrowthConfig()),
    ({"budget": 2.5}, GrowthConfig(max_growth=2.5)),
    ({"budget": 100}, GrowthConfig(max_growth=100)),
    ({"budget": 101}, GrowthConfig(max_parameters=101)),
    ({"budget": 9009.5}, GrowthConfig(max_parameters=9009.5)),
    ({"budget": 2e6, "budget_unit": "macs"}, GrowthConfig(max_macs=2e6)),
    ({"budget": 2e6, "budget_unit": "macs", "event_budget": 5}, GrowthConfig(max_macs=2e6, event_budget=5)),
    ({"budget": None, "event_budget": 1000}, GrowthConfig(max_growth=None, event_budget=1000)),
    ({"event_budget": 1000}, GrowthConfig(max_growth=1.5, event_budget=1000)),
    ({"schedule": "lr"}, PaperGrowthConfig(schedule="lr")),
    ({"layer_threshold": 4}, PaperGrowthConfig(layer_threshold=4)),
    (PAPER, GrowthConfig.paper()),
]


@pytest.mark.parametrize(("changes", "meant"), MEANT, ids=str)
def test_a_saved_config_is_read_as_it_was_meant(changes, meant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        times = [*range(50, 291, 30)] if changes is PAPER else [10, 20, 30, 40, 50]
        # Without a line search units were ranked one by one, and began at rest.
        then = dataclasses.replace(meant, at=times, unit="epochs", selection="gain", natural_step=0.0)
        assert GrowthConfig.from_dict(json.loads(json.dumps(OLD | changes))) == then
        assert GrowthConfig.from_dict(changes) == meant


@pytest.mark.parametrize(("searched", "step"), [(True, 0.5), (False, 0.0)])
def test_a_line_search_became_half_a_natural_step(searched, step):
    meant = GrowthConfig(selection="gain", natural_step=step)
    then = dataclasses.replace(meant, at=[10, 20, 30, 40, 50], unit="epochs")
    assert GrowthConfig.from_dict(OLD | {"line_search": searched}) == then
    with pytest.warns(FutureWarning, match=f"Write selection='gain', natural_step={step} instead"):
        assert GrowthConfig(line_search=searched) == meant
    with pytest.raises(ValueError, match="`line_search='no'`: .*`natural_step`"):
        GrowthConfig.from_dict(OLD | {"line_search": "no"})


LOST = [
    ({"stop": 7.5}, r"`stop=7\.5`: list the events in `at`"),
    ({"max_per_layer": 2}, "`max_per_layer=2`: limit where"),
    ({"num_events": None}, "`num_events=None`: list the times of the events in `at`"),
    ({"at": [0.5], "interval": 3}, "`interval=3`: `at` is given too"),
    ({"interval": "3"}, "`interval='3'`: list the times"),
    ({"unit_scale": 0.7}, r"`unit_scale=0\.7`: it is always 1"),
    ({"gain_init": 0.1}, r"`gain_init=0\.1`: `natural_step`"),
    ({"both_ends": False}, "`both_ends=False`: depth follows"),
    ({"budget_unit": "macs"}, "`budget_unit='macs'`: multiply-accumulates are limited by `max_macs`"),
    ({"budget": None, "event_budget": 5, "budget_unit": "macs"}, "`max_macs`"),
    ({"budget_unit": "flops"}, "`budget_unit='flops'`: .*`max_macs`"),
    ({"budget": 2, "max_growth": 3}, "`budget=2`: `max_growth` is given too"),
    ({"stop": 3, "both_ends": False}, "`stop=3`: .*; `both_ends=False`"),
]


@pytest.mark.parametrize(("changes", "message"), LOST, ids=lambda value: str(value)[:40])
def test_what_has_no_counterpart_is_refused_with_the_remedy(changes, message):
    for make in (GrowthConfig.from_dict, lambda values: GrowthConfig(**values)):
        with pytest.raises(ValueError, match=message):
            make(changes)


@pytest.mark.parametrize("name", ["layer_threshold", "quotas", "schedule"])
def test_rules_of_the_paper_are_refused_by_a_plain_config(name):
    with pytest.raises(ValueError, match=f"`{name}=.*PaperGrowthConfig"):
        GrowthConfig(**{name: PAPER[name]})


@pytest.mark.parametrize("value", [1, "3", True, math.nan, math.inf, 10**400], ids=lambda value: str(value)[:9])
def test_a_bad_value_is_refused_under_an_old_name_too(value):
    with pytest.raises(ValueError, match="`max_(growth|parameters)` must be a number"):
        GrowthConfig.from_dict({"budget": value})


@pytest.mark.parametrize(
    ("given", "meant", "new"),
    [
        (
            {"warmup": 3, "num_events": 2},
            GrowthConfig(at=[3, 13], unit="epochs"),
            r"Write at=\[3, 13\], unit='epochs'",
        ),
        ({"interval": 2, "unit": "steps"}, GrowthConfig(at=[10, 12, 14, 16, 18], unit="steps"), "`interval` of"),
        ({"budget": 2.5}, GrowthConfig(max_growth=2.5), "`budget` of .* 0.3. Write max_growth=2.5 instead"),
        ({"budget": None, "event_budget": 9}, GrowthConfig(max_growth=None, event_budget=9), "Write max_growth=None "),
        ({"budget": 9009}, GrowthConfig(max_parameters=9009), "Write max_parameters=9009 instead"),
        ({"budget": 1.5, "both_ends": True}, GrowthConfig(), "`both_ends`, `budget` of .* Write max_growth=1.5"),
        ({"quotas": False}, GrowthConfig(), "`quotas` of .* Leave it out"),
    ],
    ids=str,
)
def test_code_with_old_names_works_with_a_warning(given, meant, new):
    with pytest.warns(FutureWarning, match=new) as caught:
        assert GrowthConfig(**given) == meant
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(FutureWarning):
        assert PaperGrowthConfig(**{"budget": 2}).max_growth == 2


def test_present_names_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = GrowthConfig(max_growth=2, at=[3], unit="steps")
        assert dataclasses.replace(config, at=[3]) == copy.deepcopy(config) == pickle.loads(pickle.dumps(config))
        assert dataclasses.replace(GrowthConfig.paper(), at=[1]).quotas
    with pytest.raises(TypeError, match="colour"):
        GrowthConfig(colour=1)


@pytest.mark.parametrize(
    "word",
    [
        "--budget",
        "--budget=1.5",
        "--warmup",
        "--num-events",
        "--budget-unit",
        "--stop",
        "--quotas",
        "--max-per-layer=3",
    ],
)
def test_an_old_option_of_the_command_line_is_told_from_an_unknown_one(word):
    with pytest.raises(ValueError, match="is no option since version 0.2: .*"):
        refuse_options(["--output_dir", "budget", word, "1.5"])
    refuse_options(["--max_growth", "1.5", "--run_name", "budget"])


def test_records_of_shared_models_are_read():
    # As version 0.1 wrote it beside the weights of a model.
    times = {"warmup": 6, "interval": 6, "unit": "epochs", "num_events": 3}
    old = GrowthConfig.from_dict(times | {"criterion": "auto", "operator": "auto", "budget": 1.5})
    assert old == GrowthConfig(at=[6, 12, 18], unit="epochs", max_growth=1.5)
    record = json.loads((ROOT / "model_cards/grown-deit-digits/training_record.json").read_text())
    assert GrowthConfig.from_dict(record["growth"]) == GrowthConfig()
