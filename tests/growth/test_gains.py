"""Gains can be believed: what held-out samples predict of an event is what other data measure right after it."""

from itertools import combinations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from family_cases import family_model
from growth_cases import batch, path_of, tiny_model
from sklearn.datasets import load_digits

from hf_saddle.curvature import UnitScores, analyze_curvature
from hf_saddle.growth import (
    GrowthConfig,
    GrowthPlan,
    LayerGrowth,
    candidate_growths,
    grow_,
    plan_growth,
    probe_loss,
    score_growths,
)
from hf_saddle.growth.natural_step import judge, supported
from hf_saddle.growth.pursuit import pursue
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


def text_model(seed):
    """A GPT-2 of sequences that a small machine writes: each token follows from the two before it, or from chance."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randint(16, (16, 16), generator=generator)
    tokens = torch.randint(16, (1_800, 12), generator=generator)
    for place in range(2, 12):
        regular = torch.rand(1_800, generator=generator) < 0.8
        tokens[regular, place] = rule[tokens[:, place - 2], tokens[:, place - 1]][regular]
    parts = [{"input_ids": part, "labels": part} for part in tokens.split(100)]
    torch.manual_seed(seed)
    return family_model("GPT2LMHeadModel"), parts[:10], parts[10:]


def events_of(make, seed, **options):
    """Events of a training, and what each did to the loss of training samples that were not in the probe."""
    model, probe, others = make(seed)
    train = [*probe, *others]
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    config = GrowthConfig(num_events=EVENTS, max_growth=1.6, growth_seed=seed, **options)
    for event in range(EVENTS):
        for step in range(STEP):
            model(**train[step % len(train)]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        before = probe_loss(model, others)
        done = growth_event_(model, optimizer, probe, config, event=event)
        if done.layers:
            yield done, before - probe_loss(model, others)


@pytest.mark.parametrize(("make", "seed"), [(digit_model, 0), (digit_model, 1), (text_model, 0), (text_model, 1)])
def test_an_event_does_what_was_predicted(make, seed):
    found = list(events_of(make, seed))
    assert found
    for done, measured in found:
        units = {layer["operator"]: 0 for layer in done.layers}
        for layer in done.layers:
            units[layer["operator"]] += layer["chosen"]
        nested = sum(layer["chosen"] for layer in done.layers if ".skip." in layer["linear"])
        print(make.__name__, seed, f"{done.predicted_gain:.4f} {measured:.4f}", units, f"nested {nested}")
        assert 0.7 < measured / done.predicted_gain < 1.4
