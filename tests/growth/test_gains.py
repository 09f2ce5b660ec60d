"""Gains can be believed: what held-out samples predict of an event is what other data measure right after it."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from family_cases import family_model
from growth_cases import batch, tiny_model
from sklearn.datasets import load_digits

from hf_saddle.curvature import UnitScores, analyze_curvature
from hf_saddle.curvature.ranks import Ranks
from hf_saddle.growth import (
    GrowthConfig,
    GrowthPlan,
    LayerGrowth,
    candidate_growths,
    halves,
    plan_growth,
    probe_loss,
    score_growths,
)
from hf_saddle.growth.choice import pursuit as pursuit_module
from hf_saddle.growth.choice.joint import Judgement, judge, supported
from hf_saddle.growth.choice.natural_step import columns_of, stepped
from hf_saddle.growth.choice.pursuit import pursue
from hf_saddle.growth.choice.trial import measured_step
from hf_saddle.training import growth_event_


STEP, EVENTS = 60, 3


# ---------------------------------------------------------------------------------------------- predicted and measured
def digit_batches(seed):
    """Batches of digits, all trained on: 1,000 for the probe, 797 others."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor(bunch.target)
    parts = [{"pixel_values": images[part], "labels": labels[part]} for part in order.split(100)]
    return parts[:10], parts[10:]


def digit_model(seed):
    fields = {"num_channels": 1, "num_labels": 10, "patch_size": 2, "hidden_size": 24, "intermediate_size": 12}
    return tiny_model(seed=seed, **fields), *digit_batches(seed)


def conv_model(seed):
    """A ConvNeXt of the same digits, four times as large."""
    parts = [
        [{"pixel_values": part["pixel_values"].repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)}
         | {"labels": part["labels"]} for part in half]
        for half in digit_batches(seed)
    ]  # fmt: skip
    torch.manual_seed(seed)
    return family_model("ConvNextForImageClassification", num_labels=10), *parts


def sentences(seed):
    """Sequences that a small machine writes: each token follows from the two before it, or from chance."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randint(3, 19, (19, 19), generator=generator)
    tokens = torch.randint(3, 19, (1_800, 12), generator=generator)
    for place in range(2, 12):
        regular = torch.rand(1_800, generator=generator) < 0.8
        tokens[regular, place] = rule[tokens[:, place - 2], tokens[:, place - 1]][regular]
    return tokens


def text_model(name, seed):
    parts = [{"input_ids": part, "labels": part} for part in sentences(seed).split(100)]
    torch.manual_seed(seed)
    return family_model(name), parts[:10], parts[10:]


def masked_model(seed):
    """A BERT that fills in a third of the tokens."""
    tokens = sentences(seed)
    hidden = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < 1 / 3
    hidden[:, 5] = True
    given, asked = tokens.masked_fill(hidden, 1), tokens.masked_fill(~hidden, -100)
    parts = [
        {"input_ids": given[rows], "attention_mask": torch.ones_like(given[rows]), "labels": asked[rows]}
        for rows in torch.arange(1_800).split(100)
    ]
    torch.manual_seed(seed)
    return family_model("BertForMaskedLM"), parts[:10], parts[10:]


MODELS = {
    "ViT": digit_model,
    "ConvNeXt": conv_model,
    "GPT-2": partial(text_model, "GPT2LMHeadModel"),
    "Llama": partial(text_model, "LlamaForCausalLM"),
    "BERT": masked_model,
}


def events_of(make, seed, **options):
    """Events of a training, and what each did to the loss of training samples that were not in the probe."""
    model, probe, others = make(seed)
    train = {name: torch.cat([part[name] for part in (*probe, *others)]) for name in probe[0]}
    drawn = torch.Generator().manual_seed(seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    config = GrowthConfig(at=[0.1, 0.2, 0.3, 0.4][:EVENTS], max_growth=1.6, growth_seed=seed, **options)
    for event in range(EVENTS):
        for _ in range(STEP):
            rows = torch.randint(1_797, (100,), generator=drawn)
            model(**{name: value[rows] for name, value in train.items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        before = losses(model, others)
        done = growth_event_(model, optimizer, probe, config, event=event)
        if done.layers:
            yield done, before - losses(model, others)


def losses(model, parts):
    return torch.tensor([probe_loss(model, [part]) for part in parts])


@pytest.mark.thinned(5)
@pytest.mark.parametrize("name", MODELS)
def test_an_event_does_what_was_predicted(name):
    found = list(events_of(MODELS[name], 0))
    assert found
    for done, measured in found:
        nested = sum(layer["chosen"] for layer in done.layers if ".skip." in layer["linear"])
        told = f"predicted {done.predicted_gain:.4f} ± {done.predicted_error:.4f} measured {measured.mean():.4f}"
        print(name, told, done.operators, f"nested {nested}")
        # The samples of the probe and the others are two draws: three standard errors of their difference.
        error = math.hypot(done.predicted_error, float(measured.std()) / math.sqrt(len(measured)))
        assert done.forecast == "event" and abs(done.predicted_gain - float(measured.mean())) < 3 * error
    predicted = sum(done.predicted_gain for done, _ in found)
    measured = sum(float(measured.mean()) for _, measured in found)
    assert 0.7 < predicted / measured < 1.4


# ------------------------------------------------------------------------------------------------------------- pursuit
def random_scores(samples=40, units=7, seed=0):
    values = torch.randn(samples, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.3
    values[:, 3] = values[:, 1] + 0.01 * values[:, 3]  # nearly a copy
    judges = torch.arange(samples) % 4 == 3
    return UnitScores(values, judges, torch.ones(units), torch.tensor([False] * (units - 2) + [True] * 2))


def explained(columns):
    """What a regression on these columns explains of -1, as a decrease of the loss; by the normal equations."""
    step = torch.linalg.lstsq(columns, -torch.ones(len(columns), 1, dtype=columns.dtype)).solution
    change = (columns @ step)[:, 0]
    return -float((change + 0.5 * change.square()).mean())


def pursued(scores, cost=None, neuron=None, admit=lambda unit: True):
    units = scores.values.shape[1]
    cost = torch.ones(units) if cost is None else cost
    neuron = torch.arange(units) if neuron is None else neuron
    return pursue(scores.values[~scores.judges], scores.splits, cost, neuron, admit)


@pytest.mark.parametrize("seed", range(5))
def test_each_unit_is_the_one_that_adds_most_to_those_before_it(seed, monkeypatch):
    monkeypatch.setattr(pursuit_module, "_DAMPING", 0.0)
    scores = random_scores(seed=seed)
    scores = replace(scores, splits=torch.zeros(7, dtype=torch.bool))
    fitted, cost = scores.values[~scores.judges], torch.tensor([1.0, 2.0, 1.0, 1.0, 3.0, 1.0, 2.0])
    chosen = []
    for _ in range(7):
        known = explained(fitted[:, chosen]) if chosen else 0.0
        rest = [unit for unit in range(7) if unit not in chosen]
        chosen.append(max(rest, key=lambda unit: (explained(fitted[:, [*chosen, unit]]) - known) / float(cost[unit])))
    assert pursued(scores, cost) == chosen


def test_copies_wait_and_splits_go_one_way():
    scores = random_scores(units=7)
    order = pursued(scores)
    assert abs(order.index(1) - order.index(3)) > 1 or 3 not in order
    uphill = replace(scores, values=scores.values.abs())
    assert not {5, 6} & set(pursued(uphill)[:1]) and 5 not in pursued(replace(uphill, splits=torch.ones(7).bool()))


def test_a_neuron_grows_once_and_what_is_too_dear_is_passed_over():
    scores = random_scores()
    order = pursued(scores, neuron=torch.tensor([0, 0, 1, 1, 2, 2, 3]))
    assert sorted({0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3}[unit] for unit in order) == [0, 1, 2, 3]
    first = pursued(scores)[0]
    asked = []
    assert first not in pursued(scores, admit=lambda unit: asked.append(unit) or unit != first)
    assert asked.count(first) == 1


def test_a_step_stays_in_its_bounds_and_its_gains_add_up():
    scores = replace(random_scores(units=7), largest=torch.full((7,), 0.05))
    found = judge(columns_of(scores), 1.0)
    assert bool((found.coefficients.abs() <= 0.05 + 1e-9).all()) and bool((found.coefficients[5:] >= 0).all())
    change = scores.values[scores.judges] @ found.coefficients
    assert found.gain == pytest.approx(-float((change + 0.5 * change.square()).mean()))
    assert found.slope == pytest.approx(-float(change.mean()))
    assert float(found.shares_of(0.3).sum()) == pytest.approx(0.3)


# ------------------------------------------------------------------------------------------------------------ no gain
def test_noise_is_not_supported():
    """Scores without a mean: of a hundred sets hardly one is taken for a gain."""
    taken = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(200, 30, generator=generator, dtype=torch.float64)
        scores = UnitScores(values, torch.arange(200) % 4 == 3, torch.ones(30), torch.zeros(30, dtype=torch.bool))
        taken += bool(supported(columns_of(scores), pursued(scores), 0.5, 2.0)[0])
    assert taken <= 6


def test_an_event_of_noise_grows_nothing():
    """Every sample's loss has a random sign, so that no direction lowers the loss of other samples."""
    model = tiny_model()
    signs = torch.randint(0, 2, (512,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    probe = [batch(64, seed=10 + part) | {"sign": signs[64 * part : 64 * part + 64]} for part in range(8)]

    def loss(model, batch):
        logits = model(pixel_values=batch["pixel_values"]).logits
        return (batch["sign"] * torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")).mean()

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = growth_event_(model, None, probe, GrowthConfig(at=[0.5], significance=2.0), loss=loss)
    assert done.layers == [] and done.predicted_gain == 0.0 and done.forecast is None
    assert done.held_back.startswith(("Significance: ", "Held-out samples: "))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# ------------------------------------------------------------------------------------------------------ several ranks
def planned(rank=0, ranks=1):
    """A plan by pursuit, of a share of the samples on each rank."""
    model = tiny_model().double()
    whole = batch(48, seed=3, dtype=torch.float64)
    cut = [0, 20, 48] if ranks == 2 else [0, 48]
    probe = [{name: value[cut[rank] : cut[rank + 1]] for name, value in whole.items()}]
    config = GrowthConfig(at=[0.5], significance=0.0)
    shared = {"distributed": ranks > 1}
    choosing, judging = halves(probe, Ranks(**shared))
    report = analyze_curvature(
        model, choosing, config.criteria, whiten=True, significance=0.0, max_tokens=10**6, **shared
    )
    offered = candidate_growths(report, model, config)
    scores = score_growths(model, offered, choosing, judging, **shared)
    return scores, plan_growth(report, model, config, scores=scores)


def run_rank(rank, store, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scores, plan = planned(rank, 2)
    torch.save((scores.judges, scores.loss, plan.to_json()), f"{path}/{rank}.pt")


def test_two_ranks_plan_what_one_plans(tmp_path):
    multiprocessing.spawn(run_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first[2] == second[2]
    scores, alone = planned()
    together = GrowthPlan.from_json(first[2])
    assert int(first[0].sum()) == int(scores.judges.sum()) == 24 and first[1] == pytest.approx(scores.loss) and alone
    # Directions have no sign, which the gelu of a unit sees; sums over both are compared by splits and plans.
    assert [(g.linear, g.operator, g.neurons) for g in together.growths] == [
        (g.linear, g.operator, g.neurons) for g in alone.growths
    ]
    assert together.predicted_gain == pytest.approx(alone.predicted_gain, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------- halves
def test_halves_are_every_other_sample_however_the_probe_is_cut():
    images, names = torch.arange(11.0)[:, None], [f"image {index}" for index in range(11)]
    boxes = [{"boxes": torch.zeros(index, 4)} for index in range(11)]
    batches = [
        {"pixel_values": images[part], "names": names[part], "labels": boxes[part], "grid": torch.ones(2, 2)}
        for part in (slice(0, 3), slice(3, 4), slice(4, 11))
    ]
    for half, parts in enumerate(halves(batches)):
        expected = list(range(half, 11, 2))
        assert [int(value) for part in parts for value in part["pixel_values"]] == expected
        assert [name for part in parts for name in part["names"]] == [f"image {index}" for index in expected]
        assert [len(entry["boxes"]) for part in parts for entry in part["labels"]] == expected
        assert all(torch.equal(part["grid"], torch.ones(2, 2)) for part in parts)
    pairs = halves([(images, images + 0.5)])
    assert [[len(tensor) for tensor in part] for half in pairs for part in half] == [[6, 6], [5, 5]]
    with pytest.raises(ValueError, match="7 samples.*at least 8"):
        halves([images[:7]])


# ------------------------------------------------------------------------------------------------------ the trial
def parabola(top, gain, length=1.0):
    """A judged step whose decrease has its top at a share of it, as losses of plans with one gain."""
    found = Judgement(torch.tensor([length]), torch.tensor([2 * gain / top]), gain, 0.0)
    growth = LayerGrowth(
        "linear", "zero_gain", (0,), torch.ones(1, 2), *(torch.ones(1) for _ in range(4)), candidates=1
    )
    tried = []

    def loss_of(plan):
        share = float(plan.growths[0].gains) / length
        tried.append(share)
        return 1.0 - gain * (2 * share / top - (share / top) ** 2)

    return GrowthPlan((growth,)), found, loss_of, tried


@pytest.mark.parametrize(("top", "expected"), [(2.0, 1.0), (0.8, 1.0), (0.4, 0.4), (0.05, 0.05)])
def test_a_step_ends_where_the_loss_of_others_is_lowest(top, expected):
    plan, found, loss_of, tried = parabola(top, 0.3)
    factor, gain = measured_step(plan, found, 1.0, loss_of)
    assert factor == pytest.approx(expected, rel=1e-5)
    assert gain == pytest.approx(1.0 - loss_of(stepped(plan, found, factor, 0.0)))
    assert len(tried) <= 4


def test_a_step_that_is_not_finite_is_shortened_and_one_that_only_climbs_is_none():
    plan, found, loss_of, _ = parabola(2.0, 0.3)

    def wild(plan):
        return float("nan") if float(plan.growths[0].gains) > 0.5 else loss_of(plan)

    factor, gain = measured_step(plan, found, 1.0, wild)
    assert factor == pytest.approx(0.1) and gain > 0
    assert measured_step(plan, found, 1.0, lambda plan: 2.0) == (0.0, 0.0)
