"""Cards, pages and pictures of models whose heads grew."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import hf_saddle
from hf_saddle.growth import GrowthHistory, grow_heads_
from hf_saddle.hub import render_model_card, render_report
from hf_saddle.hub.pictures.heat_plots import draw_architecture
from hf_saddle.hub.states import linears, neuron_counts, states


sys.path.append(str(Path(__file__).parents[1] / "models"))
from families_cases import stock_model  # noqa: E402


@pytest.fixture(scope="module")
def model():
    made = hf_saddle.growable(stock_model("LlamaForCausalLM"))
    grow_heads_(made, {"layers.1.self_attn": 2})
    grow_heads_(made, {"layers.1.self_attn": [0], "layers.0.self_attn": 1}, "split")
    return made


def test_states_count_heads(model):
    history = GrowthHistory.from_model(model)
    assert [state.heads for state in states(history)] == [(0, 0), (0, 2), (1, 3)]
    assert not any("self_attn" in name for name in linears(history))
    assert "0 neurons and 4 attention heads" in history.summary() and "0 and 2 heads" in history.table()


def test_cards_and_pages_name_heads(model):
    card = str(render_model_card(model, name="demo"))
    assert "`new_head`" in card and "`self_attn`" in card and "2 heads" in card
    page = render_report(GrowthHistory.from_model(model), title="demo")
    assert "attention heads" in page and "new_head" in page


def test_the_picture_has_a_row_of_heads(model):
    figure = draw_architecture(GrowthHistory.from_model(model), neuron_counts(model))
    top = figure.axes[0]
    assert [label.get_text() for label in top.get_yticklabels()] == ["hidden", "heads"]
    assert {"+1", "+3"} <= {text.get_text() for text in top.texts}
    plt.close(figure)
