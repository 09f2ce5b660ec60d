"""Ranks of LoRA follow the gains of depth, and PEFT gives the adapters the parameters that they were to have."""

from dataclasses import replace

import peft
import pytest
import torch
from curvature_cases import cross_entropy, transformer_case
from torch import nn

from hf_saddle.curvature import CurvatureReport, analyze_curvature, lora_ranks
from hf_saddle.curvature.lora import shared_ranks


@pytest.fixture(scope="module")
def case():
    return transformer_case(samples=96, hidden=32)


@pytest.fixture(scope="module")
def report(case):
    return analyze_curvature(case.model, [case.batch], "depth", loss=cross_entropy, whiten=True)


def without_significance(report: CurvatureReport) -> CurvatureReport:
    none = [replace(layer, significant=torch.zeros_like(layer.significant)) for layer in report]
    return replace(report, layers=tuple(none))


@pytest.mark.parametrize("parameters", [60, 500, 5000])
def test_adapters_have_the_parameters_that_were_asked_for(case, report, parameters):
    ranks = lora_ranks(report, parameters)
    model = transformer_case(samples=96, hidden=32).model.requires_grad_(False)
    config = peft.LoraConfig(r=1, target_modules=[*ranks], rank_pattern=ranks)
    peft.inject_adapter_in_model(config, model)
    taken = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    dearest = max(sum(case.model.get_submodule(path).weight.shape) for path in ranks)
    assert parameters - dearest < taken <= parameters
    for path, rank in ranks.items():
        assert model.get_submodule(path).lora_A["default"].out_features == rank > 0


def test_convolutions_are_counted_by_their_patches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 5))
    batch = (torch.randn(64, 3, 4, 4), torch.randint(5, (64,)))
    found = analyze_curvature(
        model, [batch], "depth", loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    )
    one = replace(found, layers=tuple(layer for layer in found if layer.linear == "0"))
    one = replace(one, layers=tuple(replace(layer, significant=layer.gain > 0) for layer in one))
    (rank,) = lora_ranks(one, 1000).values()
    model.requires_grad_(False)
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, target_modules=["0"]), model)
    assert 1000 - 35 < sum(p.numel() for p in model.parameters() if p.requires_grad) <= 1000


def test_parameters_are_in_proportion_to_gains():
    costs = {"a": 16, "b": 16, "c": 32, "d": 16}
    assert shared_ranks({"a": 3.0, "b": 1.0, "c": 4.0, "d": 0.0}, costs, 256) == {"a": 6, "b": 2, "c": 4}
    assert shared_ranks({"a": 3.0, "b": 1.0, "c": 0.0}, costs, 16) == {"a": 1}


def test_what_cannot_be_shared_is_refused(case, report):
    width = analyze_curvature(case.model, [case.batch], "width", loss=cross_entropy)
    with pytest.raises(ValueError, match="no curvature of depth"):
        lora_ranks(width, 1000)
    with pytest.raises(ValueError, match="measure on more samples"):
        lora_ranks(without_significance(report), 1000)
    with pytest.raises(ValueError, match="do not suffice for one rank"):
        lora_ranks(report, 3)
