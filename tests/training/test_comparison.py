"""Comparisons at equal cost: what a budget pays for, equal starts, a random twin of the same places, and going on."""

import dataclasses
import math

import pytest
import torch
from training_cases import Images, arguments, assert_same_weights, growth, tiny, trainer_for
from transformers import TrainerCallback

from hf_saddle.growth import GrowthHistory, count_macs
from hf_saddle.hub.comparison import GROWTH, NONE, RANDOM, Comparison
from hf_saddle.training import GrowthCallback, GrowthTrainer, compare, comparison, spending, trainer_event
from hf_saddle.training.spending import Spending


GROWING = {
    "probe_samples": 8,
    "at": [0.25, 0.5],
    "unit": "training",
    "layers": None,
}

STEPS = 40


def maker(folder, made=None, callbacks=(), **fields):
    """What makes the trainers of a seed; those that it made are kept."""

    def make_trainer(seed: int) -> GrowthTrainer:
        trainer = GrowthTrainer(
            model=tiny(seed=seed, hidden_dropout_prob=0.0),
            args=arguments(folder, **{"seed": seed, "lr_scheduler_type": "cosine", "warmup_steps": 3} | fields),
            train_dataset=Images(),
            eval_dataset=Images(32),
            callbacks=[*callbacks],
        )
        if made is not None:
            made.append(trainer)
        return trainer

    return make_trainer


ASKED = {"growth": growth(**GROWING), "cost": "macs", "settings": {"task": "digits"}}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A comparison of two seeds without a stop, and its file."""
    path = tmp_path_factory.mktemp("straight") / "c.json"
    return compare(maker(path.parent, max_steps=STEPS), seeds=[5, 6], path=path, **ASKED), path


def test_the_arms_differ_in_growth_alone_and_cost_the_same(straight):
    found, path = straight
    assert found.seeds == [5, 6] and Comparison.load(path) == found
    step = 3 * 8 * count_macs(tiny())
    for seed in found.seeds:
        none, grown, random = ([run for run in found.runs if run.seed == seed][i] for i in range(3))
        assert (none.arm, grown.arm, random.arm) == (NONE, GROWTH, RANDOM)
        assert none.spent == STEPS * step and none.growth_cost == 0
        for run in (grown, random):
            assert run.events == 2 and run.steps < STEPS and run.parameters > run.parameters_before
            assert abs(run.spent - none.spent) <= step  # half of a step of the grown model, which costs less than two
            assert run.growth_cost > 0 and len(run.curve) == len(none.curve) == 10
        # All start alike: the first measurement is before the first event.
        assert none.curve[0] == grown.curve[0] == random.curve[0]
    first, second = found.of(GROWTH)
    assert first.results != second.results


def test_without_growth_it_is_the_training_that_would_be_without_a_comparison(tmp_path):
    (plain := maker(tmp_path)(1)).train()
    paid = maker(tmp_path)(1)
    paid.add_callback(Spending(paid, "macs", None, 10))
    paid.train()
    rates, kept = (
        [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        for trainer in (plain, paid)
    )
    assert kept == pytest.approx(rates, rel=1e-6, abs=1e-12) and len(rates) == 12
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(tensor, paid.model.state_dict()[name], rtol=1e-4, atol=1e-6), name


def test_the_random_twin_grows_as_many_neurons_in_the_same_places(tmp_path):
    made: list[GrowthTrainer] = []
    compare(maker(tmp_path, made, max_steps=STEPS), growth(**GROWING), seeds=[2], cost="macs")
    grown, random = (GrowthHistory.from_model(trainer.model).events for trainer in made[1:3])
    assert len(grown) == len(random) == 2
    for event, twin in zip(grown, random, strict=True):
        places = [(layer["linear"], layer["operator"], layer["chosen"]) for layer in event.layers]
        assert places and places == [(layer["linear"], layer["operator"], layer["chosen"]) for layer in twin.layers]
        assert [layer["neurons"] for layer in event.layers] != [layer["neurons"] for layer in twin.layers]
        for linear in {layer["linear"] for layer in twin.layers}:
            neurons = [n for layer in twin.layers if layer["linear"] == linear for n in layer["neurons"]]
            assert len(set(neurons)) == len(neurons)


class _Time(TrainerCallback):
    """A clock on which a step takes a second, and an evaluation a hundred."""

    now = 0.0

    def on_step_begin(self, *args, **kwargs):
        self.now += 1

    def on_evaluate(self, *args, **kwargs):
        self.now += 100


def test_seconds_are_those_of_steps_and_events_without_evaluations(tmp_path, monkeypatch):
    time = _Time()

    def lasting(event_, seconds: int):
        def slow(*args, **kwargs):
            time.now += seconds
            return event_(*args, **kwargs)

        return slow

    monkeypatch.setitem(spending._CLOCKS, "cpu-seconds", lambda: time.now)
    monkeypatch.setattr(comparison, "_warm_up", lambda *args: None)
    monkeypatch.setattr(trainer_event, "growth_event_", lasting(trainer_event.growth_event_, 2))
    monkeypatch.setattr(comparison, "random_event_", lasting(comparison.random_event_, 1))
    make_trainer = maker(tmp_path, callbacks=[time])
    found = compare(make_trainer, growth(**GROWING), seeds=[0], cost="cpu-seconds", budget=12.0)
    assert [run.steps for run in found.runs] == [12, 8, 10]
    assert [run.spent for run in found.runs] == [12.0, 12.0, 12.0]
    assert [run.growth_cost for run in found.runs] == [0.0, 4.0, 2.0]


def test_events_that_cost_more_than_there_is_are_refused(tmp_path):
    dear = growth(**GROWING | {"probe_samples": 64})
    with pytest.raises(
        ValueError, match="Growth cost more than the budget .*Train longer, or with fewer `probe_samples`"
    ):
        compare(maker(tmp_path), dear, seeds=[0], cost="macs")


def test_a_training_that_diverged_says_so_at_its_end(tmp_path):
    def make_trainer(seed: int):
        trainer = maker(tmp_path)(seed)
        trainer.compute_metrics = lambda prediction: {"perplexity": math.inf}
        return trainer

    with pytest.raises(ValueError, match="diverged, to perplexity inf at its end.*Lower the learning rate"):
        compare(make_trainer, growth(**GROWING), seeds=[0], cost="macs", metric="perplexity")


def test_a_budget_of_ones_own_and_its_learning_rate(tmp_path):
    step = 3 * 8 * count_macs(tiny())
    made: list[GrowthTrainer] = []
    found = compare(maker(tmp_path, made), growth(**GROWING), seeds=[0], cost="macs", budget=STEPS * step)
    assert found.of(NONE)[0].steps == STEPS  # more than the 12 that the trainer's arguments plan
    for trainer in made:
        last = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry][-1]
        assert 0 <= last < 0.05 * trainer.args.learning_rate  # annealed, whatever the number of steps


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"lr_scheduler_type": "inverse_sqrt"}, "`lr_scheduler_type` must be one of"), ({"seed": 7}, "with `seed=7`")],
)
def test_trainers_that_cannot_be_compared_are_refused(tmp_path, fields, message):
    def make_trainer(seed: int):
        trainer = maker(tmp_path)(seed)
        for name, value in fields.items():
            setattr(trainer.args, name, value)
        return trainer

    with pytest.raises(ValueError, match=message):
        compare(make_trainer, growth(**GROWING), seeds=[0], cost="macs")


def test_what_is_asked_for_in_vain_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has to leave the GrowthCallback out"):
        compare(maker(tmp_path, callbacks=[GrowthCallback(growth())]), growth(), seeds=[0], cost="macs")
    with pytest.raises(ValueError, match="needs one `eval_dataset`"):
        compare(lambda seed: trainer_for(tmp_path, seed=seed), growth(), seeds=[0], cost="macs")
    with pytest.raises(ValueError, match="`cost` must be one of"):
        compare(maker(tmp_path), growth(), cost="euros")
    with pytest.raises(ValueError, match="`seeds` must be different"):
        compare(maker(tmp_path), growth(), seeds=[1, 1])
    with pytest.raises(ValueError, match="gives no 'accuracy'"):
        compare(maker(tmp_path), growth(**GROWING), seeds=[0], cost="macs", metric="accuracy")


def test_measuring_a_step_leaves_the_model_alone(tmp_path):
    trainer, twin = maker(tmp_path)(0), maker(tmp_path)(0)
    trainer.model.train()
    Spending(trainer, "macs", None, 10).measure_step()
    assert trainer.model.training
    assert_same_weights(trainer.model, twin.model)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def without_seconds(found: Comparison) -> Comparison:
    return dataclasses.replace(found, runs=[dataclasses.replace(run, seconds=0.0) for run in found.runs])


def test_a_comparison_that_was_stopped_goes_on_as_if_it_had_not_been(straight, tmp_path, caplog):
    path, made = tmp_path / "c.json", []

    def stopping(seed: int) -> GrowthTrainer:
        if len(made) == 5:  # one for what all have in common, three of the first seed, one of the second
            raise KeyboardInterrupt
        return maker(tmp_path, made, max_steps=STEPS)(seed)

    with pytest.raises(KeyboardInterrupt):
        compare(stopping, seeds=[5, 6], path=path, **ASKED)
    assert Comparison.load(path).seeds == [5]
    made.clear()
    with caplog.at_level("INFO", "hf_saddle.training"):
        found = compare(maker(tmp_path, made, max_steps=STEPS), seeds=[5, 6], path=path, **ASKED)
    assert [trainer.args.seed for trainer in made] == [5, 6, 6, 6]
    assert "seed 5 is there, seed 6 is left to train" in caplog.text
    assert without_seconds(found) == without_seconds(straight[0]) and Comparison.load(path) == found


def test_seeds_that_are_there_are_not_trained_again(straight, tmp_path, caplog):
    found, path = straight
    made: list[GrowthTrainer] = []
    with caplog.at_level("INFO", "hf_saddle.training"):
        assert compare(maker(tmp_path, made, max_steps=STEPS), seeds=[6], path=path, **ASKED) == found
    assert len(made) == 1 and "seeds 5, 6 are there, nothing is left to train" in caplog.text


@pytest.mark.parametrize(
    ("asked", "fields", "named"),
    [
        ({"cost": "cpu-seconds"}, {}, "cost 'macs' → 'cpu-seconds'"),
        ({"points": 5}, {}, "points 10 → 5"),
        ({"budget": 1e9}, {}, "budget None → 1000000000.0"),
        ({"settings": {"task": "another"}}, {}, "task 'digits' → 'another'"),
        ({"growth": growth(**GROWING, max_growth=3.0)}, {}, "growth max_growth .* → 3.0"),
        ({}, {"learning_rate": 1e-4}, "learning_rate .* → 0.0001"),
        ({}, {"max_steps": 41}, "max_steps 40 → 41"),
    ],
)
def test_a_comparison_of_other_settings_is_not_gone_on_with(asked, fields, named, straight, tmp_path):
    _, path = straight
    before = path.read_bytes()
    make_trainer = maker(tmp_path, **{"max_steps": STEPS} | fields)
    with pytest.raises(ValueError, match=rf"of other settings already: {named}\. .*`--overwrite`"):
        compare(make_trainer, seeds=[5, 6, 7], path=path, **ASKED | asked)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda trainer: setattr(trainer, "train_dataset", Images(80)), "training loss at the start"),
        (lambda trainer: setattr(trainer, "eval_dataset", Images(31)), "validation loss at the start"),
        (lambda trainer: trainer.model.classifier.weight.data.mul_(2), "training loss at the start"),
    ],
)
def test_a_comparison_of_other_data_or_models_is_not_gone_on_with(change, named, straight, tmp_path):
    def make_trainer(seed: int) -> GrowthTrainer:
        trainer = maker(tmp_path, max_steps=STEPS)(seed)
        change(trainer)
        return trainer

    with pytest.raises(ValueError, match=f"of other settings already: {named}"):
        compare(make_trainer, seeds=[5, 6, 7], path=straight[1], **ASKED)


def test_a_comparison_begins_anew_where_that_is_asked_for(straight, tmp_path):
    path, made = tmp_path / "c.json", []
    path.write_bytes(straight[1].read_bytes())

    def stopping(seed: int) -> GrowthTrainer:
        if made:  # one for what all have in common
            raise KeyboardInterrupt
        return maker(tmp_path, made, max_steps=STEPS)(seed)

    def failing(seed: int) -> GrowthTrainer:
        raise ValueError("there is no such data set")

    with pytest.raises(ValueError, match="no such data set"):
        compare(failing, seeds=[5], path=path, **ASKED, overwrite=True)
    assert path.read_bytes() == straight[1].read_bytes()
    with pytest.raises(KeyboardInterrupt):
        compare(stopping, seeds=[5], path=path, **ASKED | {"settings": {"task": "another"}}, overwrite=True)
    assert made and not path.exists()
