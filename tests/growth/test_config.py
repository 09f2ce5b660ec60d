"""Options: every bad value is refused by name, schedules are pure functions, the paper's numbers are the paper's."""

import dataclasses
import json
import math
import re
import typing

import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_saddle.growth import GrowthConfig, PaperGrowthConfig, count_parameters
from hf_saddle.growth.config import CRITERIA
from hf_saddle.growth.kinds import NAMES
from hf_saddle.growth.paper import QUOTAS
from hf_saddle.models import SaddleViTConfig, SaddleViTForImageClassification


FOUR = [0.1, 0.2, 0.3, 0.4]
BAD = {
    "freeze": 1,
    "budget_unit": "days",
    "at": [10, 20],
    "unit": "days",
    "linears": [3],
    "layers": [-1],
    "selection": "best",
    "natural_step": 1.5,
    "quotas": 1,
    "layer_threshold": 0,
    "max_depth": -1,
    "criterion": "hessian",
    "operator": "grow",
    "step_size": 0.0,
    "significance": -1,
    "max_growth": 1,
    "max_parameters": 100,
    "max_macs": 1.5,
    "event_budget": -5,
    "directions": "uphill",
    "schedule": "cosine",
    "probe_samples": 1,
    "probe_batch_size": 0,
    "growth_seed": -1,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"`{name}"):
        PaperGrowthConfig(**{name: BAD[name]})


def test_there_is_a_bad_value_of_every_field():
    assert {field.name for field in dataclasses.fields(PaperGrowthConfig)} == set(BAD)


@pytest.mark.parametrize("name", ["significance", "max_growth", "max_parameters", "max_macs", "growth_seed"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, "3", True], ids=lambda value: str(value)[:9])
def test_values_of_other_types_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        GrowthConfig(**{name: value})


@pytest.mark.parametrize("value", [{"linears": [["mlp.fc1"]]}, {"linears": "mlp.fc1"}, {"layers": 5}], ids=str)
def test_what_is_no_list_is_refused(value):
    with pytest.raises(ValueError, match=f"`{next(iter(value))}` must be None or"):
        GrowthConfig(**value)


def test_a_config_equals_what_a_checkpoint_keeps_of_it():
    config = GrowthConfig(layers=(0, 2), linears=("mlp.fc1",))
    assert GrowthConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


CONTRADICTIONS = (
    ({"unit": "steps"}, "`unit='steps'` needs `at`: list the steps"),
    ({"unit": "epochs", "at": [-1, 2]}, "`at` must be a list of epochs from 0 on"),
    ({"at": [3, 6]}, "in .0, 1., got .3, 6.; epochs and steps go with `unit='epochs'`"),
    ({"at": [0.2, 0.2]}, "`at` must rise"),
    ({"at": [0.5, 0.1]}, "`at` must rise"),
    ({"max_growth": None}, "event_budget"),
    ({"max_growth": 2, "max_parameters": 9009}, "`max_parameters=9009` and `max_growth=2` both"),
    ({"max_growth": 2, "max_macs": 9009}, "`max_macs=9009` and `max_growth=2` both"),
    ({"max_parameters": 9009, "max_macs": 9009}, "`max_parameters=9009` and `max_macs=9009` both"),
    ({"max_growth": 9009}, "A size is `max_parameters`"),
    ({"max_parameters": 1.5}, "A multiple is `max_growth`"),
    ({"criterion": "depth", "operator": "split"}, "criterion='width'"),
    ({"criterion": "width", "operator": "zero_gain"}, "operator='split'"),
)


@pytest.mark.parametrize(("fields", "message"), CONTRADICTIONS)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PaperGrowthConfig(**fields)


def test_every_field_has_a_help_text_and_is_an_option():
    assert all(item.metadata["help"] for item in dataclasses.fields(GrowthConfig))
    parser = HfArgumentParser((GrowthConfig, TrainingArguments))
    options = (
        "--output_dir x --at 3 20 --unit epochs --linears mlp.fc1 mlp.fc2 --layers 0 1 --max_parameters 2e6 "
        "--natural_step 0.25"
    )
    config, _ = parser.parse_args_into_dataclasses(options.split())
    assert (config.at, config.unit, config.linears, config.layers) == (
        [3, 20],
        "epochs",
        ["mlp.fc1", "mlp.fc2"],
        [0, 1],
    )
    assert config.max_parameters == 2e6 and config.max_growth is None and config.natural_step == 0.25


def test_json_round_trip():
    for config in (
        GrowthConfig(),
        GrowthConfig(at=[0.5]),
        GrowthConfig(at=[0, 7.5], unit="epochs"),
        GrowthConfig(linears=["mlp.fc1"], max_growth=None, event_budget=1000),
        GrowthConfig(max_parameters=9009),
        GrowthConfig(max_macs=9009),
        GrowthConfig.paper(),
    ):
        assert GrowthConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="no field colour"):
        GrowthConfig.from_dict({"colour": 1})


@pytest.mark.parametrize("at", [[], [1.0], [-0.1], ["0.1"], [True], 0.1, [math.nan], [0.1, None]], ids=str)
def test_what_is_no_list_of_shares_is_refused(at):
    with pytest.raises(ValueError, match="`at` must be a list of shares"):
        GrowthConfig(at=at)


def test_without_a_word_events_are_early_shares_of_the_training():
    config = GrowthConfig()
    assert config.at == [0.1, 0.25, 0.4] and config.unit == "training"
    done, times = 0, []
    for step in range(1, 1001):
        if config.event_due(step / 1000, done):
            times.append(step)
            done += 1
    assert times == [100, 250, 400]


@pytest.mark.parametrize("interval", [10, 20, 30, 50])
def test_events_fall_due_at_their_epochs(interval):
    config = GrowthConfig(at=[*range(50, 291, interval)], unit="epochs")
    done, times = 0, []
    for step in range(3001):
        if config.event_due(step / 10, done):
            times.append(step / 10)
            done += 1
    assert times == list(range(50, 291, interval))


def test_a_missed_event_is_caught_up_and_the_number_is_kept():
    config = GrowthConfig(at=[2, 3, 4], unit="steps")
    assert [config.event_due(10, done) for done in range(4)] == [True, True, True, False]


def test_epochs_that_are_sums_of_steps_are_due():
    assert GrowthConfig(at=[1], unit="epochs").event_due(sum([0.1] * 10), 0)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [100, 100, 100, 100]), ("linear", [160, 120, 80, 40]), ("lr", [100] * 4)]
)
def test_shares_of_the_budget_add_up_to_it(schedule, expected):
    config = PaperGrowthConfig(at=FOUR, schedule=schedule)
    remaining, shares = 400.0, []
    for event in range(4):
        shares.append(config.event_budget_for(event, remaining=remaining))
        remaining -= shares[-1]
    assert shares == pytest.approx(expected) and remaining == pytest.approx(0)
    assert config.event_budget_for(4, remaining=10.0) == 0.0


def test_events_that_do_not_fall_inside_of_the_training_leave_their_share_to_the_others():
    config, remaining, shares = GrowthConfig(at=[*FOUR, 0.5]), 400.0, []
    for event, to_come in ((0, 2), (1, 1)):
        shares.append(config.event_budget_for(event, remaining=remaining, to_come=to_come))
        remaining -= shares[-1]
    assert shares == [200, 200]
    # A share of a fixed size is nobody else's.
    assert GrowthConfig(at=[*FOUR, 0.5], event_budget=30).event_budget_for(0, remaining=400.0, to_come=1) == 30


def test_what_an_event_leaves_the_next_ones_share():
    assert GrowthConfig(at=FOUR).event_budget_for(1, remaining=400.0) == pytest.approx(400 / 3)


def test_an_event_budget_is_scheduled_and_capped():
    config = PaperGrowthConfig(at=FOUR, schedule="linear", event_budget=100)
    assert [config.event_budget_for(event, remaining=60) for event in range(4)] == [60, 60, 50, 25]
    assert config.event_budget_for(0, remaining=-5) == 0.0


LIMITS = [
    ({}, 1500, "parameters"),
    ({"max_growth": 2.5}, 2500, "parameters"),
    ({"max_growth": 100}, 100_000, "parameters"),
    ({"max_parameters": 101}, 101, "parameters"),
    ({"max_macs": 20_000_000}, 20_000_000, "macs"),
    ({"event_budget": 1}, 1500, "parameters"),
    ({"max_growth": None, "event_budget": 1}, math.inf, "parameters"),
    ({"max_macs": 2000, "event_budget": 1}, 2000, "macs"),
]


@pytest.mark.parametrize(("fields", "size", "unit"), LIMITS, ids=str)
def test_one_field_limits_the_size_and_gives_the_unit(fields, size, unit):
    config = GrowthConfig(**fields)
    assert config.final_budget(1000) == size and config.budget_unit == unit


def test_a_limit_takes_the_place_of_the_default_one():
    config = dataclasses.replace(GrowthConfig(), max_parameters=9009)
    assert config.max_growth is None and config == GrowthConfig(max_parameters=9009)


def test_the_rules_of_the_paper_are_idle_without_it():
    rules = {field.name for field in dataclasses.fields(PaperGrowthConfig)} - {
        field.name for field in dataclasses.fields(GrowthConfig)
    }
    plain, idle = GrowthConfig(), PaperGrowthConfig()
    assert rules == {"layer_threshold", "quotas", "schedule", "step_size", "directions"}
    assert all(getattr(plain, name) == getattr(idle, name) for name in rules)


def test_the_paper_preset():
    config = GrowthConfig.paper()
    due, done = [], 0
    for epoch in range(1, 301):
        if config.event_due(epoch, done):
            due.append(epoch)
            done += 1
    assert due == [50, 80, 110, 140, 170, 200, 230, 260, 290]
    assert config.event_budget_for(0) == 580_000 and config.event_budget_for(3, lr_ratio=0.25) == 145_000
    assert (config.layer_threshold, config.operator, config.criteria) == (60, "residual_pair", ("paper_score",))
    assert config.quotas and len(QUOTAS) == 4
    model = SaddleViTForImageClassification(SaddleViTConfig.reduced_deit_small(num_labels=100))
    assert count_parameters(model) == 11_071_204


def test_criteria_follow_the_operator():
    assert GrowthConfig().criteria == ("width", "depth")
    assert GrowthConfig(operator="split").criteria == ("width",)
    assert GrowthConfig(operator="zero_gain").criteria == ("depth",)
    assert GrowthConfig(criterion="random", operator="split").criteria == ("random",)


# Name, type with default, and text of every field in the docstrings.
DOCUMENTED = [
    entry
    for config in (GrowthConfig, PaperGrowthConfig)
    for entry in re.findall(r"^ {8}(\w+) \((.*)\):\n((?: {12}.*\n)+)", config.__doc__, re.MULTILINE)
]


def test_every_field_is_documented():
    assert [name for name, *_ in DOCUMENTED] == [field.name for field in dataclasses.fields(PaperGrowthConfig)]


@pytest.mark.parametrize(("name", "kind", "text"), DOCUMENTED, ids=[name for name, *_ in DOCUMENTED])
def test_the_documentation_of_a_field_is_its_type_its_default_and_its_help(name, kind, text):
    (field,) = (field for field in dataclasses.fields(PaperGrowthConfig) if field.name == name)
    # Not `field.type`, in which `HfArgumentParser` writes.
    kept = typing.get_type_hints(PaperGrowthConfig)[name]
    hint = (kept.__name__ if type(kept) is type else str(kept)).removesuffix(" | None").replace(" | ", "` or `")
    kinds = {bool: f"`{field.default}`", str: f'`"{field.default}"`'}
    default = "" if field.default is None else f", defaults to {kinds.get(type(field.default), field.default)}"
    assert kind == f"`{hint}`, *optional*{default}"
    assert " ".join(text.split()) == field.metadata["help"]


@pytest.mark.parametrize(("name", "values"), [("operator", NAMES), ("criterion", CRITERIA)])
def test_the_documentation_of_a_choice_names_all_of_it(name, values):
    (text,) = (text for field, _, text in DOCUMENTED if field == name)
    assert set(values) <= set(re.findall(r"\w+", text))


@pytest.mark.parametrize("fields", [{"criterion": "gradmax"}, {"directions": "random"}, {"step_size": 0.3}], ids=str)
def test_what_only_studies_need_is_read_from_files_and_refused_by_a_plain_config(fields):
    assert GrowthConfig.from_dict(fields) == PaperGrowthConfig(**fields)
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}"):
        GrowthConfig(**fields)
