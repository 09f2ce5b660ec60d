"""Where grown models of every family may lie: on devices of a map, and on disk; their layers are never split."""

import pytest
import torch
from families_cases import assert_equal, every_family, grown_model, inputs, outputs
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

from hf_saddle import GrowthPlan, analyze_curvature, grow_, growable
from hf_saddle.models.loading import check_files


PARALLEL = [
    {"distributed_config": DistributedConfig(tp_size=2)},
    {"distributed_config": {"tp_size": 2}},
    {"tp_plan": "auto"},
    {"tp_size": 2},
]


@every_family
@pytest.mark.parametrize("place", ["auto", {"": "cpu"}], ids=["auto", "by name"])
def test_a_device_map_changes_nothing(name, place, tmp_path):
    model = grown_model(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, device_map=place)
    assert_equal(outputs(again, inputs(name)), outputs(model, inputs(name)))


@every_family
def test_layers_that_lie_on_disk_compute_the_same(name, tmp_path):
    model = grown_model(name)
    model.save_pretrained(tmp_path / "saved")
    blocks = {site.path.removesuffix(f".{site.linear}") for site in model.growable_linears() if not site.nested}
    places = dict.fromkeys(blocks, "disk")
    # Of weights that are tied under each of their names.
    for key in {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}:
        if not key.startswith(tuple(f"{path}." for path in blocks)):
            places[key.rpartition(".")[0] or key] = "cpu"
    options = {"device_map": places, "offload_folder": tmp_path / "disk"}
    again = type(model).from_pretrained(tmp_path / "saved", **options)
    assert any(parameter.is_meta for parameter in again.parameters())
    # The memory of a file is aligned otherwise, by which products are rounded.
    found, wanted = outputs(again, inputs(name)), outputs(model, inputs(name))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert again.shapes() == model.shapes()
    with pytest.raises(ValueError, match="not in memory .*Load the model without"):
        grow_(again, GrowthPlan())
    with pytest.raises(ValueError, match="not in memory .*load the model without"):
        analyze_curvature(again, [inputs(name)], "width")
    with pytest.raises(ValueError, match="`offload_buffers=True`.*Leave it out"):
        type(model).from_pretrained(tmp_path / "saved", **options, offload_buffers=True)


@every_family
def test_what_memory_has_no_room_for_is_put_on_disk(name, tmp_path):
    model = grown_model(name)
    model.save_pretrained(tmp_path / "saved")
    room = {"cpu": sum(tensor.nbytes for tensor in model.state_dict().values()) * 6 // 10}
    options = {"device_map": "auto", "max_memory": room, "offload_folder": tmp_path / "disk"}
    again = type(model).from_pretrained(tmp_path / "saved", **options)
    assert "disk" in again.hf_device_map.values() and any(parameter.is_meta for parameter in again.parameters())
    torch.testing.assert_close(outputs(again, inputs(name)), outputs(model, inputs(name)), rtol=1e-5, atol=1e-5)
    assert again.shapes() == model.shapes()


@every_family
@pytest.mark.parametrize("options", PARALLEL, ids=["config", "dictionary", "plan", "size"])
def test_tensor_parallelism_of_branches_is_refused_before_anything_is_started(name, options, tmp_path, monkeypatch):
    model = grown_model(name)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("it was started"))
    with pytest.raises(ValueError, match="Tensor parallelism would split .*FSDP2"):
        type(model).from_pretrained(tmp_path, **options)
    with pytest.raises(ValueError, match="Tensor parallelism would split"):
        type(model).from_pretrained(tmp_path, config=model.config, **options)


@every_family
def test_a_model_that_grew_in_width_only_may_be_split(name, tmp_path):
    model = grown_model(name)
    model.config.skip_sizes = None
    wide = type(model)(model.config)
    wide.save_pretrained(tmp_path)
    for options in PARALLEL:
        check_files(type(wide), tmp_path, {}, options)
    check_files(type(model), tmp_path, {}, {})


def test_what_lies_on_several_places_becomes_growable_before_it_is_put_there(tmp_path):
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=30
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "saved")
    rest = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    places = dict.fromkeys(rest, "cpu") | {"model.layers.1": "disk"}
    placed = {"device_map": places, "offload_folder": tmp_path / "disk"}
    model = LlamaForCausalLM.from_pretrained(tmp_path / "saved", **placed)
    with pytest.raises(
        ValueError, match="layers.0.self_attn.q_proj has been replaced.*load that with the `device_map`"
    ):
        growable(model)
    assert type(model) is LlamaForCausalLM and type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    again = growable(LlamaForCausalLM.from_pretrained(tmp_path / "saved"))
    again.save_pretrained(tmp_path / "grown")
    type(again).from_pretrained(tmp_path / "grown", **placed)
