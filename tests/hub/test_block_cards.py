"""Cards, pages and pictures name inserted blocks, and count layers as the last model has them."""

from hub_cases import log
from test_family_cards import SIZES, TOKENS

import hf_saddle.models as models
from hf_saddle.growth import GrowthHistory, GrowthPlan, LayerGrowth, grow_, insert_blocks_
from hf_saddle.hub import render_model_card, render_report
from hf_saddle.hub.pictures.drawing import save_pictures
from hf_saddle.hub.states import neuron_counts, states


def expanded():
    kind = models.SaddleLlamaForCausalLM
    model = kind(kind.config_class(**SIZES | TOKENS)).eval()
    split = LayerGrowth.by_hand(model, "model.layers.1.mlp.gate_proj", "split", [0, 1])
    grow_(model, GrowthPlan((split,)))
    insert_blocks_(model, [0], "copy")
    insert_blocks_(model, [0, 0], "identity")
    return model


def test_blocks_are_told_and_layers_keep_their_place(tmp_path):
    model = expanded()
    history = GrowthHistory.from_model(model)
    # The last block had the second place before others came.
    assert [state.widths for state in states(history)] == [
        (24, 0, 0, 0, 24),
        (24, 0, 0, 0, 26),
        (24, 0, 0, 24, 26),
        (24, 24, 24, 24, 26),
    ]
    card = str(render_model_card(model, name="demo"))
    page = render_report(history, title="demo", log=log(), neurons=neuron_counts(model))
    for text in (card, page):
        assert "+1 block after layers.0" in text and "+2 blocks after layers.0" in text
    assert "+2 of 24" in page and "new, 24" in page
    names = save_pictures(tmp_path, history, log(), neurons=neuron_counts(model))
    assert {"architecture", "timeline"} <= set(names)
    assert "new, 24" in (tmp_path / "architecture.svg").read_text()
