"""Comparisons: Student's intervals, verdicts of either sign, files, and the section of a card."""

import dataclasses
import json

import numpy as np
import pytest
from hub_cases import grown
from scipy import stats

from hf_saddle.hub import Comparison, TrainingRecord, save_comparison, sharing, write_model_card
from hf_saddle.hub.comparison import ARMS, COMPARISON_NAME, GROWTH, NONE, RANDOM, ArmRun
from hf_saddle.hub.comparison_text import comparison_text
from hf_saddle.hub.intervals import mean_interval, student_quantile
from hf_saddle.hub.record import fingerprint


def run(arm: str, seed: int, loss: float, accuracy: float) -> ArmRun:
    curve = [[5.0, 2 * loss], [10.0, loss]]
    results = {"loss": loss, "accuracy": accuracy}
    return ArmRun(arm, seed, 40, 10.0, 1.0, 3.0, 120, 100, 0 if arm == NONE else 2, curve, results)


def comparison(seeds: int = 4, lead: float = 0.1, **fields) -> Comparison:
    """Growth is ahead of no growth by about `lead` in both metrics, and of random growth by noise."""
    noise = np.random.default_rng(0).normal(scale=0.02, size=(2, seeds))
    runs = []
    for seed in range(seeds):
        start = 0.5 + seed  # seeds differ far more than arms
        runs += [
            run(NONE, seed, start, 0.5),
            run(GROWTH, seed, start - lead - noise[0, seed], 0.5 + lead + noise[0, seed]),
            run(RANDOM, seed, start - lead - noise[1, seed], 0.5 + lead + noise[1, seed]),
        ]
    return Comparison("macs", "accuracy", True, "test", {"data": "digits"}, runs, **fields)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 99])
def test_quantiles_are_those_of_student(freedom):
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_an_interval_is_that_of_a_t_test():
    values = np.random.default_rng(1).normal(size=7)
    mean, half = mean_interval(values.tolist())
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-9)
    assert mean_interval([2.0]) == (2.0, None)


@pytest.mark.parametrize(
    ("lead", "verdict", "said"),
    [(0.1, "better", "Growth helped against"), (-0.1, "worse", "did not help but harm against")],
)
def test_differences_are_taken_within_a_seed_and_named_by_their_sign(lead, verdict, said):
    found = comparison(lead=lead)
    assert [found.verdict(metric, NONE) for metric in ("accuracy", "loss")] == [verdict] * 2
    assert found.verdict("loss", RANDOM) == "not shown"
    assert np.allclose(found.differences("loss", NONE), np.negative(found.differences("accuracy", NONE)))
    assert said in found.answer() and "random growth in the same places is not shown" in found.answer()


def test_one_seed_shows_nothing_and_says_so():
    text = comparison_text(comparison(seeds=1))
    assert "±" not in text and "not shown" in text and "has no interval" in text
    assert "better" not in text and "helped against the same training without growth is not shown" in text


def test_a_comparison_is_read_as_it_was_written(tmp_path):
    found = comparison()
    found.save(tmp_path / "c.json")
    assert Comparison.load(tmp_path / "c.json") == found
    values = found.to_dict()
    del values["conditions"]  # as files are that were written before there were any
    (tmp_path / "c.json").write_text(json.dumps(values))
    assert Comparison.load(tmp_path / "c.json") == found


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("cost"),
        lambda values: values.update(schema=2),
        lambda values: values.update(cost="dollars"),
        lambda values: values.update(weights=1),
        lambda values: values["runs"][0].update(arm="<b>"),
        lambda values: values["runs"][0].update(spent="1"),
        lambda values: values["runs"][0].update(curve=[[1, "2"]]),
        lambda values: values["runs"][0].update(results={"loss": 1.0}),
        lambda values: values["runs"][0].pop("seed"),
        lambda values: values.update(runs=values["runs"][:2]),
        lambda values: values.update(runs=[1]),
    ],
)
def test_a_damaged_comparison_is_refused(damage, tmp_path):
    values = comparison().to_dict()
    damage(values)
    (tmp_path / "c.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"c\.json is damaged"):
        Comparison.load(tmp_path / "c.json")


def test_the_card_of_these_weights_tells_it_and_no_other(tmp_path):
    model = grown()
    mine = comparison(lead=-0.1, weights=fingerprint(model))
    mine.save(tmp_path / COMPARISON_NAME)
    text = write_model_card(tmp_path, model).read_text()
    assert "## Did growth help?" in text and "did not help but harm" in text
    assert "pictures/comparison.png" in text and (tmp_path / "pictures" / "comparison.png").is_file()
    assert "this card does not answer" not in text
    dataclasses.replace(mine, weights="of others").save(tmp_path / COMPARISON_NAME)
    text = write_model_card(tmp_path, model).read_text()
    assert "Did growth help?" not in text and "pictures/comparison" not in text


def test_the_weights_are_read_once_for_record_and_comparison(tmp_path, monkeypatch):
    model = grown()
    weights, asked = fingerprint(model), []
    comparison(weights=weights).save(tmp_path / COMPARISON_NAME)
    TrainingRecord(weights=weights).save(tmp_path)
    monkeypatch.setattr(sharing, "fingerprint", lambda model: asked.append(model) or weights)
    monkeypatch.setattr(sharing, "can_draw", lambda: False)
    assert "## Did growth help?" in write_model_card(tmp_path, model).read_text()
    assert asked == [model]


def test_what_others_wrote_into_a_comparison_is_no_markup(tmp_path):
    model = grown()
    hostile = "<script>x</script> | [a](javascript:b)"
    settings = {hostile: hostile}
    found = dataclasses.replace(comparison(weights=fingerprint(model)), settings=settings, split=hostile)
    found.save(tmp_path / COMPARISON_NAME)
    text = write_model_card(tmp_path, model).read_text()
    assert "<script>" not in text and "[a](" not in text


def test_the_picture_has_all_arms(tmp_path):
    assert save_comparison(tmp_path, comparison()) == "comparison"
    drawn = (tmp_path / "comparison.svg").read_text()
    assert len(ARMS) == 3 and drawn.count('id="FillBetweenPolyCollection') >= 3
