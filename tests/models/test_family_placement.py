"""Where grown models of every family may lie: on devices of a map, and on disk; their layers are never split."""

import pytest
import torch
from families_cases import OF_FAMILY, assert_equal, every_family, grown_model, inputs, outputs
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from hf_saddle.models.loading import check_files


PARALLEL = [
    {"distributed_config": DistributedConfig(tp_size=2)},
    {"distributed_config": {"tp_size": 2}},
    {"tp_plan": "auto"},
    {"tp_size": 2},
]
# A map has to name tied weights twice.
TIED = ("gemma3_text", "gpt2", "llama", "t5", "whisper")
UNTIED = [name for model_type, name in OF_FAMILY.items() if model_type not in TIED]


@every_family
@pytest.mark.parametrize("place", ["auto", {"": "cpu"}], ids=["auto", "by name"])
def test_a_device_map_changes_nothing(name, place, tmp_path):
    model = grown_model(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, device_map=place)
    assert_equal(outputs(again, inputs(name)), outputs(model, inputs(name)))


@pytest.mark.parametrize("name", UNTIED)
def test_layers_that_lie_on_disk_compute_the_same(name, tmp_path):
    model = grown_model(name)
    model.save_pretrained(tmp_path / "saved")
    blocks = {site.path.removesuffix(f".{site.linear}") for site in model.growable_linears() if not site.nested}
    places = dict.fromkeys(blocks, "disk")
    for key, _ in (*model.named_parameters(), *model.named_buffers()):
        if not key.startswith(tuple(f"{path}." for path in blocks)):
            places[key.rpartition(".")[0] or key] = "cpu"
    options = {"device_map": places, "offload_folder": tmp_path / "disk"}
    again = type(model).from_pretrained(tmp_path / "saved", **options)
    assert any(parameter.is_meta for parameter in again.parameters())
    # The memory of a file is aligned otherwise, by which products are rounded.
    found, wanted = outputs(again, inputs(name)), outputs(model, inputs(name))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert again.shapes() == model.shapes()
    with pytest.raises(ValueError, match="`offload_buffers=True`.*Leave it out"):
        type(model).from_pretrained(tmp_path / "saved", **options, offload_buffers=True)


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
