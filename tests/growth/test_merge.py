"""Merging residual pairs changes no output bit."""

import copy

import pytest
import torch
from growth_cases import LINEAR_NAMES, logits, plan_for, tiny_model, wake_

from hf_saddle.growth import count_macs, count_parameters, grow_, merge_pairs_


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merged_pairs_compute_the_same_bit_for_bit(dtype, tmp_path):
    model = tiny_model("deit").to(dtype).eval()
    for depth in range(3):
        grow_(model, plan_for(model, "residual_pair", [2, 0, 1], LINEAR_NAMES, depth=depth))
    wake_(model)
    before, parameters, macs = logits(model), count_parameters(model), count_macs(model)
    event = merge_pairs_(model)
    assert torch.equal(logits(model), before)
    assert (event.parameters_before, event.parameters_after) == (parameters, count_parameters(model))
    assert count_macs(model) == macs and model.config.skip_unit == "residual"
    fresh = type(model)(copy.deepcopy(model.config))
    assert [(n, p.shape) for n, p in fresh.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path, dtype=dtype)), before)


def test_merged_models_may_still_widen():
    model = tiny_model()
    grow_(model, plan_for(model, "residual_pair", [2, 0]))
    merge_pairs_(model)
    wake_(model)
    before = logits(model)
    grow_(model, plan_for(model, "split", [2], steps=0.0))
    assert (logits(model) - before).abs().max() < 2e-6
    with pytest.raises(ValueError, match="merge pairs only after the last event"):
        grow_(model, plan_for(model, "residual_pair", [2]))


def test_only_pairs_can_be_merged():
    model = tiny_model()
    for _ in range(2):
        with pytest.raises(ValueError, match="no residual pairs"):
            merge_pairs_(model)
        grow_(model, plan_for(model, "zero_gain", [2]))
