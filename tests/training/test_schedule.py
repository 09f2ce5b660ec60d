"""Events inside of a training: foretold as they happen, announced before the first step, sharing its budget."""

import logging

import pytest
from training_cases import Images, Stream, events, growth, train
from transformers import TrainerCallback, TrainerState

from hf_saddle.growth import GrowthConfig
from hf_saddle.training.course import Course


class Watch(TrainerCallback):
    """Notes the epoch of every step, as `Trainer` counts it."""

    def __init__(self):
        self.epochs = {}
        self.course = None

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.course = Course.of(args, state, train_dataloader)

    def on_step_end(self, args, state, control, **kwargs):
        self.epochs[state.global_step] = state.epoch


SHARES = {"at": [0.1, 0.25, 0.4], "unit": "training"}
MODES = {
    "steps": ({"max_steps": 12}, {}),
    "epochs": ({"max_steps": -1, "num_train_epochs": 2.4}, {"unit": "epochs", "at": [0.6, 1.3, 2.0]}),
    "accumulation": (
        {"max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 3, "train_dataset": Images(60)},
        {"unit": "epochs", "at": [0.7, 1.6, 2.5]},
    ),
    "shares": ({"max_steps": 12}, SHARES),
    "shares_of_epochs": ({"max_steps": -1, "num_train_epochs": 1.5}, SHARES),
    "shares_of_a_stream": ({"max_steps": 9, "train_dataset": Stream()}, SHARES),
    "all_at_once": ({"max_steps": 4}, {"at": [0, 0.1, 0.2]}),
    "the_last_is_too_late": ({"max_steps": 9}, {"at": [3, 6, 9]}),
}


@pytest.mark.parametrize("name", MODES)
def test_events_happen_when_they_are_foretold(tmp_path, name):
    training, times = MODES[name]
    config = growth(**times)
    watch = Watch()
    trainer = train(tmp_path, config, callbacks=[watch], **training)
    assert [event["step"] for event in events(trainer)] == watch.course.events(config, 0, 0)
    if watch.course.batches is not None:
        assert watch.epochs == pytest.approx({step: watch.course.epoch(step) for step in watch.epochs})


def test_a_long_course_is_foretold_at_once():
    course = Course(steps=10**5, batches=1000)
    assert course.events(GrowthConfig(), 0, 0) == [10_000, 25_000, 40_000]
    assert course.events(GrowthConfig(), 25_000, 2) == [40_000]


def test_events_of_a_short_training_share_the_whole_budget(tmp_path):
    """Two of five events fall inside; each takes half, and what they leave is less than a unit."""
    config = growth(at=[2, 4, 6, 8, 10], significance=0.0, max_growth=1.2)
    trainer = train(tmp_path, config, max_steps=6)
    found = trainer.model.growth_history
    first, end = found["initial"]["parameters"], found["events"][-1]["parameters_after"]
    assert [event["step"] for event in found["events"]] == [2, 4]
    assert found["events"][0]["budget"] == pytest.approx(0.1 * first)
    assert 1.2 * first - 40 < end <= 1.2 * first


def messages(caplog, level) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == level and record.getMessage().startswith("Growth: ")
    ]


def test_the_first_line_says_when_how_much_and_where(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hf_saddle"):
        train(tmp_path, growth(at=[3, 6, 9, 12, 15]), max_steps=10)
    (line,) = messages(caplog, logging.INFO)
    assert line.startswith("Growth: 3 of 5 events fall inside of this training, at steps 3, 6, 9 of 10; up to ")
    assert "(×2 of " in line and "6 of 12 linears may grow (ranked by width and depth)." in line
    assert not messages(caplog, logging.WARNING)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {},
            "0 of 3 events fall inside of this training: the first is due at step 3, and the training ends at step 2",
        ),
        (
            {"unit": "epochs", "at": [10]},
            "the first is due at epoch 10, and the training ends at epoch 0.25. Name earlier ones, or shares",
        ),
        ({"unit": "training", "at": [0.9]}, "the next is due at 90% of 2 steps, which leaves no step after it"),
    ],
    ids=["steps", "epochs", "shares"],
)
def test_a_training_in_which_nothing_grows_is_warned_of(tmp_path, caplog, fields, told):
    with caplog.at_level(logging.WARNING, "hf_saddle"):
        train(tmp_path, growth(**fields), max_steps=2)
    (line,) = messages(caplog, logging.WARNING)
    assert told in line


def test_a_budget_that_is_spent_is_warned_of(tmp_path, caplog):
    trainer = train(tmp_path / "a", growth(significance=0.0, max_growth=1.01))
    model = trainer.model
    limit = sum(parameter.numel() for parameter in model.parameters()) - 1
    with caplog.at_level(logging.WARNING, "hf_saddle"):
        train(tmp_path / "b", growth(max_growth=None, max_parameters=limit), model=model)
    (line,) = messages(caplog, logging.WARNING)
    assert "nothing will grow. Budget: it is spent. The model has" in line and "Raise the limit." in line


def test_an_event_without_growth_says_why(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hf_saddle"):
        trainer = train(tmp_path, growth(at=[3], significance=1e6), max_steps=5)
    (line,) = [record.getMessage() for record in caplog.records if "nothing grows" in record.getMessage()]
    assert "Significance: none of" in line and "standard errors from zero" in line
    assert trainer.model.growth_history["events"][0]["held_back"] in line


def test_the_share_of_a_resumed_training_counts_from_its_start():
    state = TrainerState(global_step=6, max_steps=12)
    assert GrowthConfig().event_due(state.global_step / state.max_steps, 2)
