"""The study's bookkeeping: compute is spent to the end and no further, arms are paired, intervals are Student's."""

import base64
import copy
import json
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode


sys.path.append(str(Path(__file__).parents[1]))
from benchmarks.study import (  # noqa: E402
    baselines,
    cifar_arms,
    claims,
    event,
    expansion,
    expansion_arms,
    expansion_task,
    experiments,
    files,
    gromo_arm,
    language,
    language_arms,
    matched,
    probe,
    rankings,
    report_cifar,
    report_expansion,
    shapes,
    task,
    training,
)
from benchmarks.study import run as runner  # noqa: E402
from benchmarks.study.report_events import steps_worth  # noqa: E402
from benchmarks.study.statistics import bootstrap, interval, paired, text, unpacked  # noqa: E402
from benchmarks.study.task import make_model, oriented  # noqa: E402
from hf_saddle import analyze_curvature, grow_  # noqa: E402
from hf_saddle.curvature import SolverOptions  # noqa: E402
from hf_saddle.growth import (  # noqa: E402
    GrowthConfig,
    GrowthPlan,
    LayerGrowth,
    PaperGrowthConfig,
    count_macs,
    count_parameters,
    halves,
    probe_loss,
)
from hf_saddle.growth.costs import plan_cost  # noqa: E402
from hf_saddle.training import growth_event_  # noqa: E402


@pytest.fixture
def digits(monkeypatch):
    """scikit-learn's digits in place of Fashion-MNIST, whose package is not everywhere."""
    splits = task.digits()
    monkeypatch.setitem(task.TASKS, "fashion-mnist", lambda: splits)
    monkeypatch.setattr(event, "fashion_mnist", lambda: splits)
    return splits


def arm(**changes) -> training.Arm:
    shape = experiments.shape(4, hidden=16)
    budget = training.PASSES * training.BATCH * count_macs(make_model(0, shape)) * 20
    return training.Arm(**{"name": "tiny", "shape": shape, "budget": budget} | changes)


def test_a_uniform_arm_takes_as_many_steps_as_its_compute_pays(digits):
    row = training.run(arm(test=True), 0)
    assert row["steps"] == 20 and row["growth_macs"] == 0
    assert [point["step"] for point in row["curve"]] == list(range(2, 21, 2))
    assert row["curve"][-1]["macs"] == row["total_macs"]
    assert set(row["test"]) == {"loss", "accuracy", "right"} and "test" not in training.run(arm(), 0)
    assert json.loads(json.dumps(row)) == row


def test_a_grown_arm_pays_for_its_analysis(digits):
    growth = {"probe_samples": 32, "significance": 0.0, "max_growth": 1.2, "natural_step": 0.5}
    row = training.run(arm(events=(0.1, 0.4), growth=growth), 0)
    assert len(row["events"]) == 2 and row["parameters"] > row["start"]["parameters"]
    assert row["parameters"] <= 1.2 * row["start"]["parameters"]
    spent = row["growth_macs"] + training.PASSES * training.BATCH * row["start"]["macs"] * row["steps"]
    assert row["growth_macs"] > 0 and row["steps"] < 20
    assert spent < arm().budget + training.PASSES * training.BATCH * row["macs"]
    assert row["total_macs"] - arm().budget < training.PASSES * training.BATCH * row["macs"]


@pytest.mark.slow
def test_at_equal_steps_the_analysis_is_free(digits):
    growth = {"probe_samples": 32, "significance": 0.0, "max_growth": 1.2}
    row = training.run(arm(events=(0.4,), growth=growth, budget=10, unit="steps"), 0)
    assert row["steps"] == 10 and row["events"][0]["step"] == 4 and row["growth_macs"] > 0


@pytest.mark.parametrize(
    ("second", "steps"),
    [
        (1e9, 8 + 3),  # steps of half a second until 4 of 10 are over, an event of no time, steps of 2 seconds
        (1e-9, 8 + 1),  # an event that takes all that is left
    ],
)
def test_in_seconds_a_step_costs_what_it_takes_and_an_event_as_well(digits, monkeypatch, second, steps):
    paces = iter([training.Pace(0.5, second), training.Pace(2.0, second)])
    monkeypatch.setattr(training, "paced", lambda *arguments: next(paces))
    growth = {"probe_samples": 32, "significance": 0.0, "max_growth": 1.2}
    row = training.run(arm(unit="seconds", budget=10, events=(0.4,), growth=growth), 0)
    assert row["steps"] == steps and row["pace"] == row["events"][0]["pace"] == 2.0
    assert next(paces, None) is None


def test_a_step_of_the_reference_takes_as_long_as_itself(digits):
    found = training.paced(make_model(0, training.REFERENCE).train(), digits["train"], training.REFERENCE)
    assert 0.5 < found.ratio < 2 and found.seconds > 0


def test_random_growth_is_drawn_anew_for_every_seed(digits, monkeypatch):
    seen = []
    grow = training.grow
    monkeypatch.setattr(training, "grow", lambda *arguments: seen.append(arguments[3].growth_seed) or grow(*arguments))
    for seed in (3, 4):
        training.run(
            arm(events=(0.4,), growth={"probe_samples": 32, "criterion": "random"}, budget=3, unit="steps"), seed
        )
    assert seen == [3, 4]


def test_a_grown_shape_can_be_trained_from_scratch(digits):
    growth = {"probe_samples": 32, "significance": 0.0, "max_growth": 1.2}
    grown = training.run(arm(events=(0.4,), growth=growth), 0)
    shape = json.loads(json.dumps(grown["shape"]))
    model = make_model(1, shape)
    assert (
        sum(p.numel() for p in model.parameters())
        == grown["parameters"]
        == experiments.run(arm(shape=shape), 1)["parameters"]
    )


@pytest.mark.slow
def test_an_event_costs_what_the_counter_says(digits):
    """The share that is charged, times samples and size, against a count of another event of another model."""
    config = GrowthConfig(at=[0.5], probe_samples=64, significance=0.0, max_growth=1.2, criterion="depth")
    model = make_model(3, experiments.shape(32, hidden=16))
    macs = count_macs(model)
    batches = training.probe(digits["train"], config, 0, 0)
    with FlopCounterMode(display=False) as counter:
        growth_event_(model, torch.optim.AdamW(model.parameters()), batches, config, event=0, step=0)
    charged = probe.passes_of_an_event(json.dumps(asdict(config))) * 64 * macs
    assert charged == pytest.approx(counter.get_total_flops() / 2, rel=0.15)


def test_images_are_turned_and_mirrored():
    images = torch.arange(16 * 9.0).reshape(16, 1, 3, 3)
    turned = oriented(images)
    assert torch.equal(turned[:2], images[:2]) and torch.equal(turned[3], images[3].flip(-1))
    assert torch.equal(turned[4], torch.rot90(images[4], 1, (-2, -1)))
    ways = torch.stack([image[0] for image in oriented(images[:1].expand(8, 1, 3, 3))])
    assert len(ways.unique(dim=0)) == 8


def test_images_in_training_are_cuts_of_what_is_padded_with_nothing():
    images = torch.arange(1.0, 64 * 2 * 12 * 12 + 1).view(64, 2, 12, 12)
    split = task.ShiftedSplit(images, torch.arange(64))
    chosen = torch.randperm(64)
    assert torch.equal(split.batch(chosen)["pixel_values"], images[chosen])
    found = split.batch(chosen, torch.Generator().manual_seed(0))
    seen = set()
    for index, label, cut in zip(chosen, found["labels"], found["pixel_values"], strict=True):
        places = [
            (mirrored, top, left)
            for mirrored in (False, True)
            for top in range(9)
            for left in range(9)
            if np.array_equal(padded(images[index], mirrored)[:, top : top + 12, left : left + 12], cut)
        ]
        assert len(places) == 1 and label == index
        seen.update(places)
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert {top for _, top, _ in seen} == {left for _, _, left in seen} == set(range(9))


def padded(image: torch.Tensor, mirrored: bool) -> np.ndarray:
    array = image.numpy()[..., ::-1] if mirrored else image.numpy()
    return np.pad(array, ((0, 0), (4, 4), (4, 4)))


@pytest.mark.parametrize("names", [("img", "fine_label"), ("image", "label")])
def test_colour_images_are_read_from_a_folder(tmp_path, monkeypatch, names):
    generator = np.random.default_rng(0)
    pixels = {"train": generator.integers(0, 256, (12, 32, 32, 3)), "test": generator.integers(0, 256, (5, 32, 32, 3))}
    for name, values in pixels.items():
        pictures = [Image.fromarray(value.astype(np.uint8)) for value in values]
        columns = Features({names[0]: ImageColumn(), names[1]: Value("int64"), "coarse_label": Value("int64")})
        rows = {names[0]: pictures, names[1]: list(range(len(pictures))), "coarse_label": [0] * len(pictures)}
        Dataset.from_dict(rows, features=columns).to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    monkeypatch.setenv("CIFAR100", str(tmp_path))
    monkeypatch.setattr(task, "VALIDATION", 4)
    splits = task.cifar_100.__wrapped__()
    assert {name: split.labels.tolist() for name, split in splits.items()} == {
        "train": list(range(8)),
        "validation": [8, 9, 10, 11],
        "test": list(range(5)),
    }
    expected = (pixels["test"][3] / 255 - [0.5071, 0.4865, 0.4409]) / [0.2673, 0.2564, 0.2762]
    assert np.allclose(splits["test"].images[3].permute(1, 2, 0), expected, atol=1e-5)


def test_arms_see_the_same_data(digits):
    first, second = (training.training_batches(digits["train"], 3) for _ in range(2))
    for _ in range(3):
        one, other = next(first), next(second)
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and torch.equal(one["labels"], other["labels"])
    assert not torch.equal(next(training.training_batches(digits["train"], 4))["labels"], one["labels"])


def test_colour_arms_see_the_same_cuts_and_grow_to_the_size_of_the_large_model(monkeypatch):
    assert count_parameters(make_model(0, cifar_arms.LARGE)) == cifar_arms.SIZE
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(128, 3, 32, 32, generator=generator), torch.arange(128) % 100
    splits = {"train": task.ShiftedSplit(images, labels), "validation": task.Split(images[:8], labels[:8])}
    monkeypatch.setitem(task.TASKS, "cifar-100", lambda: splits)
    first, second = (next(training.training_batches(splits["train"], 80)) for _ in range(2))
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1_080))
    assert torch.equal(first["labels"], labels[order]) and not torch.equal(first["pixel_values"], images[order])
    paces, steps = iter([training.Pace(0.5, 1e9)] + 3 * [training.Pace(1.0, 1e9)]), []  # events of no time
    monkeypatch.setattr(training, "paced", lambda *arguments: steps.append(arguments[2]) or next(paces))
    tiny = replace(cifar_arms.WIDENED, budget=4, growth=cifar_arms.WIDENED.growth | {"probe_samples": 32})
    row = training.run(tiny, 80)
    assert row["steps"] == 5 and steps == 4 * [cifar_arms.LARGE]
    assert [event["parameters_after"] > 96_228 for event in row["events"]] == [True] * 3


def test_what_is_spent_until_a_loss_is_reached():
    points = [(0.5, 10.0, 3.0), (0.8, 20.0, 2.0), (1.0, 40.0, 1.0)]
    row = {"curve": [dict(zip(("share", "macs", "loss"), point, strict=True)) for point in points]}
    assert report_cifar.reached(row, 1.25) == pytest.approx({"share": 0.95, "macs": 35.0})
    assert report_cifar.reached(row, 3.5) == {"share": 0.5, "macs": 10.0}
    assert report_cifar.reached(row, 0.5) is None


def test_an_arm_takes_the_rate_of_its_lowest_loss(monkeypatch):
    middle, width = cifar_arms.MIDDLE.name, cifar_arms.WIDENED.name
    runs = {
        "cifar_budgets": [
            (f"16 epochs, weights from 0.125, 0.003: {middle}", 3e-3, 2.4),
            (f"16 epochs, weights from 0.02, 0.001: {middle}", 1e-3, 2.0),  # another start
        ],
        "cifar_trials": [(width, 3e-3, 2.5), ("growth", 3e-3, 2.7)],
        "cifar_tuning": [
            (f"{middle}, 0.006", 6e-3, 2.3),
            (f"{width}, 0.006", 6e-3, 2.6),
            ("growth, 0.006", 6e-3, 2.6),
        ],
    }
    monkeypatch.setattr(
        cifar_arms,
        "results",
        lambda name: [{"arm": arm, "learning_rate": rate, "validation": {"loss": x}} for arm, rate, x in runs[name]],
    )
    rates = {arm.name: cifar_arms.at_best_rate(arm).learning_rate for arm in cifar_arms.FINAL}
    assert rates[middle] == 6e-3 and rates[width] == rates[cifar_arms.LARGEST.name] == 3e-3
    assert rates[cifar_arms.ANY.name] == rates[cifar_arms.GROWING.name] == 6e-3
    assert rates[cifar_arms.RANDOM.name] == rates[width]  # of the arms from which they differ in one thing


def test_directions_that_are_alike_are_known():
    assert event.mean_cosine(torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("way", ["several", "significant"])
def test_other_rankings_grow_by_what_they_predict(digits, way):
    model = make_model(0, experiments.shape(4, hidden=16)).train()
    optimizer = torch.optim.AdamW(model.parameters())
    config = PaperGrowthConfig(**experiments.ONE_EVENT | experiments.STEP | {"probe_samples": 64})
    batches = training.probe(digits["train"], config, 0, 0)
    before = probe_loss(model, halves(batches)[1])
    done = training.WAYS[way](model, optimizer, batches, config, event=0, step=0)
    assert before - probe_loss(model, halves(batches)[1]) == pytest.approx(done.predicted_gain, abs=1e-5)
    assert 1 < count_parameters(model) / done.parameters_before <= 1.1
    linears = [layer["linear"] for layer in done.layers if layer["operator"] == "zero_gain"]
    assert (len(set(linears)) < len(linears)) == (way == "several")  # of some neurons two directions


def test_second_directions_are_eigenvectors_beside_the_first(digits):
    model, batches = make_model(0, experiments.shape(4, hidden=16)).double(), []
    for batch in training.probe(digits["train"], PaperGrowthConfig(probe_samples=64), 0, 0):
        batches.append(batch | {"pixel_values": batch["pixel_values"].double()})
    solver = SolverOptions(refine_steps=60, polish_steps=60, tolerance=0.0)
    report = analyze_curvature(model, batches, "depth", whiten=True, solver=solver)
    linear = "vit.layers.1.mlp.fc1"
    (second,) = [growth for growth in rankings.second_directions(model, batches, report, 0) if growth.linear == linear]
    inputs = []
    handle = model.get_submodule(linear).register_forward_hook(lambda m, args, output: inputs.append(args[0]))
    for batch in batches:
        model(**batch)
    handle.remove()
    x = torch.nn.functional.pad(torch.cat(inputs).flatten(0, 1), (0, 1), value=1.0)
    moments = (x.t() @ x / len(x)).detach()
    moments += 1e-3 * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    first, other = report[linear, "depth"].direction, second.directions.double()
    overlap = ((first @ moments) * other).sum(dim=1).square()
    lengths = ((first @ moments) * first).sum(dim=1) * ((other @ moments) * other).sum(dim=1)
    assert float((overlap / lengths).sqrt().max()) < 1e-5
    other = (x @ other.t()).detach()
    assert torch.allclose(other.square().mean(dim=0) * second.steps.square(), torch.ones(4, dtype=torch.float64))


@pytest.mark.slow
def test_branches_start_from_one_snapshot(digits):
    growth = {"probe_samples": 32, "significance": 0.0, "criterion": "depth", "operator": "zero_gain"}
    growth |= {"selection": "gain", "natural_step": 0.0}
    branches = (event.Branch("none"), event.Branch("zero gain", growth | {"max_growth": 1.2}))
    row = event.run_branches(experiments.shape(4, hidden=16), branches, 0, 4e-3, 5, 15, (0, 10))
    none, grown = (row["branches"][name]["losses"] for name in ("none", "zero gain"))
    assert none[0] == grown[0] == row["before"]  # zero gains change nothing at once
    assert none[1] != grown[1]


def test_finished_runs_are_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    jobs = [experiments.Job(name, seed, partial(dict)) for name in ("a", "b") for seed in (0, 1)]
    monkeypatch.setitem(runner.EXPERIMENTS, "headline", lambda: jobs)
    (tmp_path / "headline.jsonl").write_text('{"arm": "b", "seed": 0}\n')
    assert [(job.name, job.seed) for job in runner.missing("headline")] == [("a", 0), ("a", 1), ("b", 1)]


def test_every_experiment_lists_unique_runs():
    for name, jobs in experiments.EXPERIMENTS.items():
        names = [(job.name, job.seed) for job in jobs()]
        assert names or name == "one_shot", name  # which needs the grown models of the headline
        assert len(set(names)) == len(names), name
    assert count_macs(make_model(0, experiments.LARGE)) == experiments.LARGE_MACS
    assert sum(p.numel() for p in make_model(0, experiments.LARGE).parameters()) == experiments.LARGE_PARAMETERS


def test_intervals_are_those_of_scipy():
    values = [1.0, 2.0, 4.0, 5.5]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=mean, scale=stats.sem(values))
    assert mean - half == pytest.approx(low) and mean + half == pytest.approx(high)
    assert paired({0: 1.0, 2: 5.0}, {2: 3.0, 1: 9.0}) == [2.0]
    assert text([0.5], 100) == "50.00" and text([]) == "–"


def test_steps_worth_is_read_off_the_branch_without_growth():
    row = {
        "after": [0, 10, 20],
        "branches": {"none": {"losses": [1.0, 0.8, 0.6]}, "grown": {"losses": [0.7]}, "worse": {"losses": [1.1]}},
    }
    assert steps_worth(row, "grown") == pytest.approx(15) and steps_worth(row, "worse") == 0


def test_only_the_task_from_scratch_is_turned(monkeypatch):
    generator = np.random.default_rng(0)
    files = {
        name: (generator.integers(0, 256, (24, 4, 4), np.uint8), np.arange(24) % 10) for name in ("train", "test")
    }
    monkeypatch.setattr(task, "fashion_mnist_arrays", files.get)
    monkeypatch.setattr(task, "VALIDATION", 8)
    plain = task.upright.__wrapped__()
    monkeypatch.setattr(task, "upright", lambda: plain)
    turned = task.fashion_mnist.__wrapped__()
    indices = torch.arange(16)
    assert {name: len(split) for name, split in turned.items()} == {"train": 16, "validation": 8, "test": 24}
    assert torch.equal(plain["train"].batch(indices)["pixel_values"], plain["train"].images)
    assert torch.equal(turned["train"].batch(indices)["pixel_values"], oriented(plain["train"].images))
    for name in ("validation", "test"):
        assert torch.equal(turned[name].images, oriented(plain[name].images))
        assert not torch.equal(turned[name].images, plain[name].images)


@pytest.mark.slow
def test_a_matched_control_grows_as_many_units_in_every_linear_for_the_same_compute(digits):
    options = {"probe_samples": 64, "max_growth": 1.2}
    growth = experiments.PROBE | options | experiments.GROWTHS["auto, whitened, line search"]
    twin = arm(events=(0.1,), growth=growth | {"natural_step": 0.0})
    rows = [training.run(replace(twin, way=way), 0) for way in ("measured", "matched")]
    guided, control = rows
    assert control["events"][0]["chosen"] == guided["events"][0]["chosen"]
    assert control["steps"] == guided["steps"] and control["total_macs"] == guided["total_macs"]
    assert control["parameters"] == guided["parameters"]
    assert control["validation"] != guided["validation"]


@pytest.mark.slow
def test_stacking_doubles_the_blocks_and_costs_no_analysis(digits):
    shallow = experiments.shape(4, hidden=16) | {"num_hidden_layers": 1}
    budget = 2 * arm().budget
    rows = [training.run(arm(shape=shape, budget=budget), 0) for shape in (shallow, arm().shape)]
    stacked = arm(shape=shallow, events=(0.5,), growth={"probe_samples": 32}, way="stacked", budget=budget)
    row = training.run(stacked, 0)
    assert row["parameters"] == rows[1]["parameters"] and row["macs"] == rows[1]["macs"]
    assert row["shape"]["num_hidden_layers"] == 2 and row["growth_macs"] == 0
    assert rows[1]["steps"] < row["steps"] < rows[0]["steps"]
    assert row["events"][0]["chosen"] == {"layers.0:block_stack": 1}


def test_uneven_splits_fill_the_budget_and_keep_the_function(digits):
    shape = experiments.shape(16)
    config = GrowthConfig(probe_samples=64, max_growth=1.1, at=[0.5])
    model = make_model(0, shape)
    before, columns = copy.deepcopy(model), model.vit.layers[0].mlp.fc2.weight.clone()
    batches = training.probe(digits["train"], config, 0, 0)
    done = baselines.uneven_event_(model, torch.optim.AdamW(model.parameters()), batches, config, event=0, step=3)
    with torch.no_grad():
        difference = model(**batches[0]).logits - before(**batches[0]).logits
    assert float(difference.abs().max()) < 1e-5 and done.loss_after == pytest.approx(done.loss_before, rel=1e-5)
    left = 1.1 * done.parameters_before - done.parameters_after
    assert 0 <= left < 2 * shape["hidden_size"] + 1  # less than a neuron costs
    neurons, grown = done.layers[0]["neurons"], model.vit.layers[0].mlp.fc2.weight
    assert done.layers[0]["linear"] == "vit.layers.0.mlp.fc1" and len(neurons) > 3
    torch.testing.assert_close(grown[:, neurons], 0.75 * columns[:, neurons])
    torch.testing.assert_close(grown[:, 16:], 0.25 * columns[:, neurons])


@pytest.mark.slow
def test_every_baseline_is_an_arm(digits):
    for one in (*experiments.others(), *experiments.of_kinds()):
        tiny = replace(one, budget=4, unit="steps", growth=one.growth and one.growth | {"probe_samples": 32})
        row = training.run(tiny, 0)
        assert row["steps"] == 4 and len(row["events"]) == len(one.events)
        if one.way == "even":
            assert row["shape"]["num_hidden_layers"] == 6 and row["events"][0]["chosen"]["layers.1:block_copy"] == 1


def test_gromo_widens_all_mlps_and_lowers_the_loss_of_the_probe(digits):
    model = make_model(0, experiments.SMALL).train()
    optimizer = torch.optim.AdamW(training.parameter_groups(model), lr=1e-2, betas=(0.9, 0.98), fused=True)
    batches = training.training_batches(digits["train"], 0)
    for _ in range(20):
        training.train_step_(model, optimizer, next(batches), 1e-2)
    config = PaperGrowthConfig(at=[0.5], probe_samples=256, max_parameters=6_400)
    samples = training.probe(digits["train"], config, 0, 0)
    before, loss = copy.deepcopy((model, optimizer.state_dict()["state"])), probe_loss(model, samples)
    done = training.WAYS["gromo"](model, optimizer, samples, config, event=0, step=20)
    assert done.loss_before == loss > done.loss_after == pytest.approx(probe_loss(model, samples), abs=1e-5)
    assert done.parameters_after == count_parameters(model) <= 6_400 and done.macs_after == count_macs(model)
    widths = [layer.mlp.fc1.out_features for layer in model.vit.layers]
    assert [layer["chosen"] for layer in done.layers] == [width - 4 for width in widths] and min(widths) > 4
    assert list(model.config.widths.values()) == widths
    names = {parameter: name for name, parameter in before[0].named_parameters()}
    order = [old for group in training.parameter_groups(before[0]) for old in group["params"]]
    for old, known, now in zip(order, before[1].values(), optimizer.state_dict()["state"].values(), strict=True):
        slices = tuple(map(slice, old.shape))
        assert torch.equal(model.get_parameter(names[old])[slices], old)
        assert all(torch.equal(now[moment][slices], known[moment]) for moment in ("exp_avg", "exp_avg_sq"))
    training.train_step_(model, optimizer, next(batches), 1e-2)


def test_a_block_of_gromo_is_the_mlp_until_it_grows():
    mlp, x = make_model(0, experiments.SMALL).vit.layers[0].mlp, torch.randn(3, 5, 16)
    assert torch.equal(gromo_arm.block_of(mlp)(x), mlp(x))


def test_a_gromo_arm_pays_for_its_events(digits, monkeypatch):
    paces = iter([training.Pace(0.5, 1e9)] + 3 * [training.Pace(2.0, 1e9)])  # events of no time
    monkeypatch.setattr(training, "paced", lambda *arguments: next(paces))
    (tiny,) = [replace(arm, budget=10) for arm in experiments.in_seconds() if arm.name == "gromo"]
    row = training.run(tiny, 0)
    assert row["steps"] == 2 + 5 and [event["step"] for event in row["events"]] == [2, 3, 4]
    assert count_parameters(make_model(1, row["shape"])) == row["parameters"] <= experiments.TARGET


def test_a_search_of_shapes_goes_on_with_the_best_of_each_round(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    pairs = shapes.pairs(experiments.TARGET)
    assert all(count_parameters(make_model(0, shapes.uneven(pair))) <= experiments.TARGET for pair in pairs)
    assert (4, 92) in pairs and (24, 92) not in pairs
    wanted = {pair: abs(pair[0] - 48) + abs(pair[1] - 24) for pair in pairs}
    for experiment, expected in (("shapes_quarter", pairs), ("shapes_half", None), ("shapes", None)):
        jobs = list(experiments.shape_search(experiment))
        assert {job.run.args[0].budget for job in jobs} == {shapes.ROUNDS[experiment][0] * experiments.SECONDS_BUDGET}
        found = shapes.entrants(experiment, experiments.TARGET)
        assert found == (expected or sorted(pairs, key=wanted.__getitem__)[: len(found)])
        for job, pair in zip(jobs, found, strict=True):
            files.store(experiment, {"arm": job.name, "seed": job.seed, "validation": {"loss": wanted[pair]}})
    assert experiments.best_static().shape == shapes.uneven((48, 24))


def test_a_matched_plan_differs_in_neurons_and_directions_alone(digits):
    model = make_model(0, experiments.shape(16))
    config = GrowthConfig(probe_samples=64)
    report = analyze_curvature(model, training.probe(digits["train"], config, 0, 0), "random")
    fc1, v_proj = "vit.layers.0.mlp.fc1", "vit.layers.1.attention.v_proj"
    wanted = [(fc1, "split", range(8)), (fc1, "zero_gain", range(8, 16)), (v_proj, "zero_gain", range(5))]
    plan = GrowthPlan(tuple(LayerGrowth.by_hand(model, *growth) for growth in wanted))
    drawn, other = (matched.at_random(plan, report, config, seed) for seed in (0, 1))
    for before, after in zip(plan.growths, drawn.growths, strict=True):
        assert (before.linear, before.operator) == (after.linear, after.operator)
        assert len(before.neurons) == len(after.neurons) and not torch.equal(before.directions, after.directions)
    assert [growth.neurons for growth in drawn.growths] != [growth.neurons for growth in other.growths]
    assert plan_cost(model, drawn.growths) == plan_cost(model, plan.growths)
    grow_(model, drawn)  # raises where a neuron grows twice


def test_verdicts_need_seeds_and_an_interval_that_survives_the_correction():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.2, 20)
    noise -= noise.mean()
    assert claims.verdict(1.0 + noise, 1e-9) == "shown"
    assert claims.verdict(noise - 1.0, 1e-9) == "refuted"
    assert claims.verdict(noise, 1.0).startswith("level")
    assert claims.verdict(0.4 + 10 * noise, 0.5) == "not shown"
    assert claims.verdict((1.0 + noise)[:9], 1e-9).startswith("not shown")
    assert claims.verdict(noise / 100, 1.0, "loss") == "level (within 0.01 nats)"
    assert claims.verdict(noise, 1.0, "loss") == "not shown"


def test_p_values_are_adjusted_as_holm_does():
    # Example of Holm (1979): sorted p-values are multiplied by n, n - 1, … and never fall.
    assert claims.adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_two_one_sided_tests_agree_with_the_interval_of_90_percent():
    values = np.random.default_rng(1).normal(0.1, 0.3, 12)
    mean, half = interval(values, 0.90)
    margin = abs(mean) + half
    assert claims.level(values, margin) == pytest.approx(0.05, abs=1e-6)


@pytest.fixture
def tokens(monkeypatch):
    """Few tokens in place of the standard library's, and steps that take as many seconds as there are blocks."""
    ids = torch.randint(language.VOCABULARY, (1_000,), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(language, "sources", lambda: {"train": ids, "validation": ids[:400], "test": ids[:300]})
    monkeypatch.setattr(language, "seconds_of_a_step", lambda: {2: 2.0, 4: 4.0, 8: 8.0})


def test_language_models_spend_the_same_seconds_however_deep(tokens):
    rows = {
        arm.name: language.run_language(arm, 0, steps=4, test=True)
        for arm in (language_arms.UNIFORM, language_arms.STACKED, language_arms.SILENT)
    }
    assert rows["4 blocks"]["steps"] == 8 and rows["4 blocks"]["growth_seconds"] == 0
    for name in ("2 blocks, stacked to 4", "2 blocks, silent copies to 4"):
        assert rows[name]["steps"] == 4 + 6  # four steps of two blocks until a fifth of 32 s is over
        assert rows[name]["start"] < rows[name]["parameters"] == rows["4 blocks"]["parameters"]
        assert 0 <= rows[name]["seconds"] - 32 < 4
    assert rows["2 blocks, stacked to 4"]["test"] != rows["2 blocks, silent copies to 4"]["test"]
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize("way", ["measured", "matched"])
def test_language_models_that_grow_pay_for_events_and_for_their_own_steps(tokens, monkeypatch, way):
    costs = iter([language.Timed(2.0, 1.0), language.Timed(6.0, 1e-9)])  # the event itself takes next to nothing
    monkeypatch.setattr(language, "timed", lambda model: next(costs))
    monkeypatch.setattr(language, "PROBE", 16)
    arm = language_arms.grows("growth", way, selection="gain", significance=0.0, max_parameters=125_000)
    row = language.run_language(replace(arm, events=(0.5,)), 0, steps=4)
    assert row["steps"] == 8 + 3  # steps of two seconds until half of 32 s is over, then of six
    assert 123_456 == row["start"] < row["parameters"] <= 125_000
    (event,) = row["events"]
    assert event["parameters_after"] == row["parameters"] and event["step"] == 8 and event["step_seconds"] == 6
    assert json.loads(json.dumps(row)) == row


def test_a_language_model_of_four_blocks_takes_as_long_as_itself(tokens):
    model = language.make_llama(0, 4)
    assert count_parameters(model) == language_arms.SIZE
    found = language.timed(model)
    assert 2 < found.cost < 8 and found.unit > 0


def test_language_models_of_a_seed_see_the_same_passages(tokens):
    ids = language.sources()["train"]
    first, second, other = (language.random_passages(ids, seed) for seed in (3, 3, 4))
    assert all(torch.equal(next(first)["input_ids"], next(second)["input_ids"]) for _ in range(3))
    assert not torch.equal(next(first)["input_ids"], next(other)["input_ids"])


@pytest.fixture
def two_texts(monkeypatch):
    """Few tokens of two texts that share none, and steps and expansions that take whole seconds."""
    drawn = {
        name: torch.randint(*bounds, (2_000,), generator=torch.Generator().manual_seed(0))
        for name, bounds in (("old", (0, 500)), ("new", (500, 1_000)))
    }
    splits = {name: {"train": ids, "validation": ids[:400], "test": ids[400:700]} for name, ids in drawn.items()}
    prices = dict.fromkeys(expansion.ARMS, expansion.Price(2.0, 1.5)) | {expansion.FULL: expansion.Price(0.0, 1.0)}
    monkeypatch.setattr(expansion_task, "texts", lambda: splits)
    monkeypatch.setattr(expansion, "prices", lambda: prices)
    monkeypatch.setattr(expansion, "PROBE", 16)
    caches = (expansion_task.base, expansion_task.losses_before, expansion.expanded)
    for cache in caches:
        cache.cache_clear()
    yield splits
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("name", expansion.ARMS)
def test_expansions_spend_the_same_seconds_and_train_as_many_parameters(two_texts, name):
    row = expansion.run_expansion(name, 3e-3, 0, steps=8, base_steps=1)
    assert row["steps"] == (8 if name == expansion.FULL else 4) and row["seconds"] == 8
    whole = count_parameters(expansion_task.base(0, 1))
    if name == expansion.FULL:
        assert row["trained"] == row["parameters"] == whole
    else:
        assert row["trained"] == row["parameters"] - whole == pytest.approx(expansion.new_parameters(), rel=0.01)
    assert row["before"] == expansion_task.losses(expansion_task.base(0, 1), "validation")
    assert row["validation"]["loss"] < row["before"]["loss"]
    assert row["validation"]["forgetting"] == row["validation"]["old"] - row["before"]["old"] != 0
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize("name", [name for name in expansion.ARMS if name != expansion.FULL])
def test_only_what_is_new_is_trained(two_texts, name):
    before = expansion.expanded(name, 0, 1)
    after = copy.deepcopy(before)
    expansion_task.train_(after, "new", 2, 3e-3, 0)
    moved = {name for name, p in before.named_parameters() if not torch.equal(p, after.get_parameter(name))}
    new = {name: p for name, p in before.named_parameters() if p.requires_grad}
    assert moved == set(new)
    old = count_parameters(expansion_task.base(0, 1))
    assert sum(p.numel() for p in new.values()) == count_parameters(before) - old


def test_new_blocks_and_adapters_answer_nothing_before_they_are_trained(two_texts):
    losses = expansion_task.losses_before(0, 1, "test")
    assert expansion_task.losses(expansion.expanded(expansion.EXPANDED, 0, 1), "test") == losses
    assert expansion_task.losses(expansion.expanded(expansion.LORA, 0, 1), "test") == pytest.approx(losses)


def test_random_units_of_an_expansion_are_in_the_same_linears(two_texts):
    grown, random = (
        {name: p.shape for name, p in expansion.expanded(arm, 0, 1).named_parameters() if p.requires_grad}
        for arm in (expansion.GROWN, expansion.RANDOM)
    )
    assert grown == random and len(grown) > 10


def test_the_text_of_the_documentation_is_not_among_the_old_one(monkeypatch):
    seen = []
    monkeypatch.setattr(expansion_task, "in_tenths", lambda texts, tokenizer: seen.append(texts) or {})
    (prose,) = [file for file in language.modules() if file.match("pydoc_data/topics.py")]
    others = [file for file in language.modules() if file.parent != prose.parent]
    chosen = [file for file in others if file.stat().st_size < 20_000][:40]
    monkeypatch.setattr(expansion_task, "modules", lambda: [*chosen, prose])
    assert set(expansion_task.texts.__wrapped__()) == {"old", "new"}
    old, new = seen
    assert len(old) == 40 and not any(max(new, key=len)[:200] in text for text in old)


def test_rates_of_expansions_are_those_of_the_lowest_loss_on_new_text(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    for rate, loss, old in ((1e-3, 3.0, 9.0), (3e-3, 2.0, 8.0), (1e-2, 2.5, 1.0)):
        row = {"arm": f"LoRA, {rate:g}", "seed": 100, "rate": rate, "validation": {"loss": loss, "old": old}}
        files.store("expansion_tuning", row)
    assert expansion_arms.best_rate("LoRA") == 3e-3 and expansion_arms.best_rate("growth") == 1e-3


def test_new_text_and_forgetting_are_shown_together():
    rows = [{"seed": 3, "test": {"loss": 2.0, "old": 4.0, "forgetting": 0.5}}]
    assert report_expansion.figures(rows, report_expansion.SUM) == {3: 2.5}


def test_right_answers_are_kept_and_drawn_anew(digits):
    model = make_model(0, experiments.SMALL)
    found = task.evaluate_each(model, digits["test"])
    right = unpacked(found["right"], 500)
    assert (
        right.mean() == pytest.approx(found["accuracy"])
        and found["loss"] == task.evaluate(model, digits["test"])["loss"]
    )
    assert bootstrap({0: found["right"]}, {0: found["right"]}, 500) is None
    assert bootstrap(dict.fromkeys(range(3), found["right"]), dict.fromkeys(range(3), found["right"]), 500) == (
        0.0,
        0.0,
    )


def test_the_bootstrap_has_the_spread_of_seeds_and_of_samples():
    generator = np.random.default_rng(0)
    # Of independent answers, right with 0.7 and 0.6, over 30 seeds and 400 samples.
    runs = [
        {seed: base64.b64encode(np.packbits(generator.random(400) < share)).decode() for seed in range(30)}
        for share in (0.7, 0.6)
    ]
    low, high = bootstrap(*runs, 400)
    deviation = np.sqrt((0.7 * 0.3 + 0.6 * 0.4) / (30 * 400))
    # The noise of an answer is drawn with its seed, with its sample, and with both.
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(3) * deviation, rel=0.2)
    assert low < 0.1 < high
