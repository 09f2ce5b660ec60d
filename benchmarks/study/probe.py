"""The samples that an event measures, and what measuring them costs in multiply-accumulates."""

import json
from dataclasses import asdict
from functools import cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_saddle.growth import GrowthEvent, PaperGrowthConfig, count_macs
from hf_saddle.training import growth_event_

from .task import Split, digits, make_model


def probe(split: Split, config: PaperGrowthConfig, seed: int, event: int) -> list[dict[str, Tensor]]:
    """The probe batches of an event: training images, drawn anew for each event."""
    generator = torch.Generator().manual_seed(2_000 + 100 * seed + event)
    indices = torch.randperm(len(split), generator=generator)[: config.probe_samples]
    return [split.batch(part, generator) for part in indices.split(config.probe_batch_size)]


def macs_of_an_event(config: PaperGrowthConfig, event: GrowthEvent) -> float:
    """What an event cost in multiply-accumulates; a matched control is charged what its twin costs."""
    fields = json.dumps(asdict(config) | {"growth_seed": 0})
    return passes_of_an_event(fields) * config.probe_samples * event.macs_before


@cache
def passes_of_an_event(fields: str) -> float:
    """
    What an event costs, in forward passes over its probe set.

    It is counted once, on a small model, as counting takes longer than the event.
    """
    limits = {"max_growth": 1.2, "max_parameters": None, "max_macs": None, "at": [0.5]}
    config = PaperGrowthConfig(**json.loads(fields) | limits)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    model = make_model(0, shape | {"intermediate_size": 16})
    macs, batches = count_macs(model), probe(digits()["train"], config, 0, 0)
    with FlopCounterMode(display=False) as counter:
        growth_event_(model, torch.optim.AdamW(model.parameters()), batches, config, event=0, step=0)
    return counter.get_total_flops() / 2 / config.probe_samples / macs
