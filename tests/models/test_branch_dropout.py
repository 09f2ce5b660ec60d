"""Stochastic depth leaves out whole branches of single samples while training, and is nothing otherwise."""

import itertools

import pytest
import torch
from model_cases import GROWN, SHAPE, build, every_class, every_classifier, output, randomize_

from hf_saddle.growth import GrowthPlan, LayerGrowth, grow_
from hf_saddle.models.vision import BranchDropout


def train_output(model, pixels):
    torch.manual_seed(1)
    return output(model.train(), pixels)


@every_class
def test_without_a_rate_training_is_that_of_stock(model_class, pixels):
    stock = model_class.stock_class(model_class.stock_class.config_class(**SHAPE, hidden_dropout_prob=0.2))
    randomize_(stock)
    model = model_class.from_stock(stock)
    assert torch.equal(train_output(model, pixels), train_output(stock, pixels))
    assert not torch.equal(train_output(model, pixels), output(model.eval(), pixels))


@every_class
def test_evaluation_and_checkpoints_do_not_know_the_rate(model_class, pixels):
    plain, dropping = build(model_class, GROWN), build(model_class, GROWN, drop_path_rate=0.9)
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    assert torch.equal(output(dropping, pixels), output(plain, pixels))
    assert not torch.equal(train_output(dropping, pixels), train_output(plain, pixels))


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_samples_are_dropped_as_a_whole_at_the_rate_and_the_mean_is_kept(rate):
    torch.manual_seed(0)
    samples = 20_000
    kept = BranchDropout(0.0, rate)(torch.ones(samples, 3, 2))
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    share = (kept[:, 0, 0] != 0).double().mean().item()
    error = (rate * (1 - rate) / samples) ** 0.5  # standard error of the share
    assert abs(share - (1 - rate)) < 4 * error
    torch.testing.assert_close(kept.max().item(), 1 / (1 - rate))


@every_classifier
def test_a_layer_keeps_or_leaves_out_each_of_its_branches(model_class):
    """Every sample is one of four sums, made by hand from the layer's parts."""
    layer = build(model_class, GROWN, drop_path_rate=0.5).base_model.layers[1].train()
    torch.manual_seed(0)
    tokens, keep = torch.randn(64, 5, 32), 0.5
    seen = set()
    with torch.no_grad():
        found = layer(tokens)
        layer.eval()
        sums = {}
        for attends, thinks in itertools.product((0, 1), repeat=2):
            hidden = tokens + attends / keep * layer.attention(layer.layernorm_before(tokens))[0]
            sums[attends, thinks] = hidden + thinks / keep * layer.mlp(layer.layernorm_after(hidden))
    for sample in range(len(tokens)):
        matching = [
            kind for kind, value in sums.items() if torch.allclose(value[sample], found[sample], atol=1e-5, rtol=1e-5)
        ]
        assert len(matching) == 1
        seen.update(matching)
    assert seen == set(sums)


@every_classifier
def test_the_rate_rises_linearly_over_the_layers(model_class):
    model = build(model_class, num_hidden_layers=4, drop_path_rate=0.3)
    rates = [layer.dropout.drop_path for layer in model.base_model.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert build(model_class, num_hidden_layers=1, drop_path_rate=0.3).base_model.layers[0].dropout.drop_path == 0


@every_classifier
def test_a_stock_model_gets_a_rate_that_is_saved(model_class, tmp_path):
    stock = model_class.stock_class(model_class.stock_class.config_class(**SHAPE))
    model = model_class.from_stock(stock, drop_path_rate=0.3)
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path)
    assert again.config.drop_path_rate == 0.3
    assert again.base_model.layers[-1].dropout.drop_path == 0.3


@every_classifier
def test_growth_keeps_the_function_and_the_rate(model_class, pixels):
    model = build(model_class, drop_path_rate=0.3)
    before = output(model, pixels)
    path = f"{model.base_model_prefix}.layers.1.mlp.fc1"
    grow_(model, GrowthPlan((LayerGrowth.by_hand(model, path, "zero_gain", [0, 3]),)))
    assert torch.equal(output(model, pixels), before)
    assert model.base_model.layers[1].dropout.drop_path == 0.3
