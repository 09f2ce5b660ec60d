"""Grown models survive every way of saving and loading; damaged files are refused and leave a model as it was."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_cases import GROWN, SHAPE, UNITS, build, every_class, every_growth, every_unit, output
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, DeiTForImageClassification

from hf_saddle import (
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleDeiTModel,
    SaddleViTForImageClassification,
    SaddleViTModel,
)
from hf_saddle.models import GrowablePreTrainedModel
from hf_saddle.models.shapes import Shapes


FC1 = "deit.layers.0.mlp.fc1."
SMALLER = {0: {"skip_sizes": {"mlp.fc1": [2], "mlp.fc2": [1]}}}


def assert_same(model: GrowablePreTrainedModel, other: GrowablePreTrainedModel, pixels: Tensor) -> None:
    """Equal parameters in equal order, equal buffers, configs that describe them, and equal outputs."""
    tensors, others = model.state_dict(), other.state_dict()
    assert list(tensors) == list(others)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert model.shapes() == other.shapes()
    for each in (model, other):
        assert Shapes.of_config(each.config) == each.shapes()
    assert torch.equal(output(model.eval(), pixels), output(other.eval(), pixels))


# ------------------------------------------------------------------------------------------------- save_pretrained
@every_class
@every_growth
def test_round_trip(model_class, grown, pixels, tmp_path):
    model = build(model_class, grown)
    model.save_pretrained(tmp_path)
    again, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert_same(again, model, pixels)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not list(tmp_path.glob("*.bin"))


@every_unit
def test_round_trip_of_every_unit(unit, pixels, tmp_path):
    model = build(SaddleDeiTForImageClassification, GROWN, skip_unit=unit)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again.config.skip_unit == unit
    assert_same(again, model, pixels)


@every_growth
def test_auto_classes(grown, pixels, tmp_path):
    for model_class, base_class in (
        (SaddleDeiTForImageClassification, SaddleDeiTModel),
        (SaddleViTForImageClassification, SaddleViTModel),
    ):
        model = build(model_class, grown)
        model.save_pretrained(tmp_path)
        assert AutoConfig.from_pretrained(tmp_path) == model.config
        assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is model_class
        base = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
        assert type(base) is base_class
        assert_same(base, model.base_model, pixels)


def test_sharded(pixels, tmp_path):
    model = build(grown=GROWN)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(AutoModelForImageClassification.from_pretrained(tmp_path), model, pixels)


def test_bfloat16(pixels, tmp_path):
    model = build(grown=GROWN)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    targets = {name: buffer.dtype for name, buffer in again.named_buffers() if name.endswith("target")}
    assert len(targets) == 10 and set(targets.values()) == {torch.int64}
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    assert_same(again, model.to(torch.bfloat16), pixels.to(torch.bfloat16))


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=["cpu", "auto", "dict"])
def test_device_map(device_map, pixels, tmp_path):
    model = build(grown=GROWN)
    model.save_pretrained(tmp_path)
    assert_same(AutoModelForImageClassification.from_pretrained(tmp_path, device_map=device_map), model, pixels)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention(attention, pixels, tmp_path):
    model = build(grown=GROWN)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path, attn_implementation=attention)
    assert again.config._attn_implementation == attention
    torch.testing.assert_close(output(again, pixels), output(model, pixels), rtol=1e-4, atol=1e-5)


def test_an_encoder_of_a_classifier(pixels, tmp_path):
    model = build(grown=GROWN)
    model.deit.save_pretrained(tmp_path)
    again = SaddleDeiTForImageClassification.from_pretrained(tmp_path, num_labels=9)
    assert again.classifier.out_features == 9
    assert_same(again.deit, model.deit, pixels)


def test_another_number_of_labels(pixels, tmp_path):
    model = build(grown=GROWN)
    model.save_pretrained(tmp_path)
    again = SaddleDeiTForImageClassification.from_pretrained(tmp_path, num_labels=9, ignore_mismatched_sizes=True)
    assert again.classifier.out_features == 9
    assert_same(again.deit, model.deit, pixels)


def test_pickle(pixels):
    model = build(grown=GROWN)
    assert_same(pickle.loads(pickle.dumps(model)), model, pixels)


# ------------------------------------------------------------------------------------------------------------ history
def test_history(tmp_path):
    history = {"version": 1, "events": [{"step": 3, "layer": "deit.layers.0.mlp.fc1", "gain": 0.1}], "note": "é"}
    first, second = tmp_path / "first", tmp_path / "second"
    model = build(grown=GROWN)
    model.growth_history = history
    model.save_pretrained(first)
    again = AutoModelForImageClassification.from_pretrained(first)
    again.save_pretrained(second)
    assert again.growth_history == history
    assert (first / "growth_history.json").read_bytes() == (second / "growth_history.json").read_bytes()


def test_a_model_that_never_grew_has_no_history(tmp_path):
    model = build()
    model.growth_history = {"events": []}
    model.save_pretrained(tmp_path)
    model.growth_history = None
    model.save_pretrained(tmp_path)
    assert AutoModelForImageClassification.from_pretrained(tmp_path).growth_history is None


@pytest.mark.parametrize("text", ["", "{", "[]", '"é'], ids=["empty", "truncated", "list", "text"])
def test_a_broken_history_is_refused(text, tmp_path):
    build().save_pretrained(tmp_path)
    (tmp_path / "growth_history.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="growth_history.json"):
        AutoModelForImageClassification.from_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------------- bad folders
@pytest.fixture
def folder(tmp_path) -> Path:
    build(grown=GROWN).save_pretrained(tmp_path)
    return tmp_path


def with_tensor(name: str, tensor: Tensor | None) -> Callable[[Path], None]:
    """An edit of a folder: replace a tensor, or remove it."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return edit


def with_config(**fields) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return edit


BAD_FOLDERS = {
    "truncated": (with_bytes(lambda content: content[: len(content) // 2]), "damaged"),
    "truncated-header": (with_bytes(lambda content: content[:20]), "damaged"),
    "empty": (with_bytes(lambda content: b""), "damaged"),
    "garbage": (with_bytes(lambda content: b"\xff" * 999), "damaged"),
    "wrong-shape": (with_tensor(FC1 + "weight", torch.zeros(44, 32)), FC1 + r"weight.*\(44, 32\).*\(45, 32\)"),
    "wrong-head": (with_tensor("classifier.weight", torch.zeros(4, 32)), r"classifier\.weight.*\(4, 32\)"),
    "target-too-large": (with_tensor(FC1 + "skip.target", torch.arange(40, 46)), FC1 + r"skip\.target.*\[0, 45\)"),
    "target-negative": (with_tensor(FC1 + "skip.target", torch.arange(-1, 5)), FC1 + r"skip\.target.*\[0, 45\)"),
    "target-float": (with_tensor(FC1 + "skip.target", torch.arange(6.0)), FC1 + r"skip\.target.*int64.*F32"),
    "target-int32": (with_tensor(FC1 + "skip.target", torch.arange(6).int()), FC1 + r"skip\.target.*int64.*I32"),
    "target-too-short": (with_tensor(FC1 + "skip.target", torch.arange(5)), FC1 + r"skip\.target.*\(5,\).*\(6,\)"),
    "nested-target": (
        with_tensor(FC1 + "skip.linear.skip.target", torch.arange(4, 7)),
        r"linear\.skip\.target.*\[0, 6\)",
    ),
    "no-target": (with_tensor(FC1 + "skip.target", None), f"lacks.*{FC1}skip.target"),
    "no-gain": (with_tensor(FC1 + "skip.gain", None), f"lacks.*{FC1}skip.gain"),
    "no-branch-row": (with_tensor(FC1 + "skip.linear.weight", None), f"lacks.*{FC1}skip.linear.weight"),
    "no-layer-row": (with_tensor(FC1 + "weight", None), f"lacks.*{FC1}weight"),
    "no-positions": (with_tensor("deit.embeddings.position_embeddings", None), "lacks.*position_embeddings"),
    "no-last-norm": (with_tensor("deit.layernorm.weight", None), r"lacks.*deit\.layernorm\.weight"),
    "foreign-tensor": (with_tensor("decoder.weight", torch.zeros(3)), "has tensors.*decoder"),
    "branch-not-in-config": (
        with_tensor("deit.layers.1.mlp.fc1.skip.gain", torch.zeros(3)),
        "layers.1.mlp.fc1.skip.gain",
    ),
    "config-without-branches": (with_config(skip_sizes=None), "has tensors.*skip"),
    "config-of-other-unit": (with_config(skip_unit="residual"), r"has tensors.*skip\.gain"),
    "config-layer": (with_config(per_layer_config={"7": {"intermediate_size": 45}}), r"per_layer_config\[7\]"),
    "config-terabytes": (with_config(hidden_size=2**18, num_attention_heads=2**18), "hidden_size"),
    "complex": (with_tensor(FC1 + "bias", torch.zeros(45, dtype=torch.complex64)), FC1 + "bias.*C64 in .*safetensors"),
    "bool": (with_tensor(FC1 + "bias", torch.zeros(45, dtype=torch.bool)), FC1 + "bias.*BOOL in .*safetensors"),
    "int64": (with_tensor(FC1 + "bias", torch.zeros(45, dtype=torch.int64)), FC1 + "bias.*I64 in .*safetensors"),
    "float8": (
        with_tensor(FC1 + "bias", torch.zeros(45).to(torch.float8_e4m3fn)),
        FC1 + "bias.*F8_E4M3 in .*safetensors",
    ),
    "nan": (with_tensor(FC1 + "bias", torch.full((45,), torch.nan)), FC1 + "bias` in .*folder.*not finite"),
    "infinite": (with_tensor("deit.layernorm.bias", torch.arange(32) / 0), "deit.layernorm.bias.*not finite"),
    "config-dtype": (with_config(dtype="int64"), "`dtype` must be one of float16"),
    "config-method": (with_config(to_dict=1), "`to_dict` of a config is a method"),
    "config-digits": (with_config(per_layer_config={"１": {"intermediate_size": 45}}), "layer index"),
    "config-labels": (with_config(id2label=["cat"]), "id2label"),
    "config-layers": (with_config(num_hidden_layers=4096, per_layer_config=None), "`num_hidden_layers`.*safetensors"),
    "config-wide": (with_config(hidden_size=4096), r"classifier\.weight.*\(3, 32\).*\(3, 4096\)"),
    "history-folder": (lambda folder: (folder / "growth_history.json").mkdir(), "growth_history.json must be a file"),
    "history-link": (
        lambda folder: (folder / "growth_history.json").symlink_to(folder / "config.json"),
        "growth_history.json must be a file",
    ),
    "type-of-stock": (with_config(model_type="deit"), "`model_type` is 'deit'"),
    "type-of-vit": (with_config(model_type="saddle_vit"), "`model_type` is 'saddle_vit'"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "`model_type` is None"),
}


@pytest.mark.parametrize("edit, message", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_bad_folder_is_refused(folder, edit, message):
    edit(folder)
    with pytest.raises(ValueError, match=message):
        SaddleDeiTForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize("text", ["null", "3", "[]", "", "[" * 9999, '{"a": ' + "9" * 5000 + "}", '{"a": NaN}'])
def test_a_config_that_is_no_object_is_refused_by_name(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="The config .*config.json"):
        SaddleDeiTForImageClassification.from_pretrained(folder)


BAD_INDICES = {
    "not-json": ("{", "not valid JSON"),
    "number": ("3", "JSON object"),
    "no-map": ('{"metadata": {}}', "weight_map"),
    "no-metadata": ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "metadata"),
    "map-of-numbers": ('{"metadata": {}, "weight_map": {"a": 3}}', r"weight_map\['a'\]"),
    "traversal": ('{"metadata": {}, "weight_map": {"a": "../model.safetensors"}}', r"weight_map\['a'\]"),
    "pickle": ('{"metadata": {}, "weight_map": {"a": "model.bin"}}', r"weight_map\['a'\]"),
    "lost-shard": ('{"metadata": {}, "weight_map": {"a": "other.safetensors"}}', "lacks the shard other.safetensors"),
}


@pytest.mark.parametrize("text, message", BAD_INDICES.values(), ids=BAD_INDICES)
def test_a_bad_index_is_refused_by_name(text, message, tmp_path):
    build(grown=GROWN).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        AutoModelForImageClassification.from_pretrained(tmp_path)
    assert "model.safetensors.index.json" in str(error.value)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    build(grown=GROWN).save_pretrained(tmp_path, max_shard_size="20KB")
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    save_file(load_file(first) | load_file(second), second, {"format": "pt"})
    with pytest.raises(ValueError, match=f"both in .*{first.name} and in .*{second.name}"):
        AutoModelForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("bad", [torch.full((45,), torch.nan), torch.zeros(45, dtype=torch.int64)], ids=["nan", "int"])
def test_load_state_dict_refuses_what_is_no_weight_and_changes_nothing(bad):
    model, saved = build(seed=1), build(grown=GROWN, seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=FC1 + "bias"):
        model.load_state_dict(saved.state_dict() | {FC1 + "bias": bad})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_mask_token_and_a_pooler_may_start_anew(folder):
    model, info = SaddleDeiTModel.from_pretrained(folder, use_mask_token=True, output_loading_info=True)
    assert sorted(name.split(".")[-1] for name in info["missing_keys"]) == ["bias", "mask_token", "weight"]
    model.save_pretrained(folder)
    _, info = SaddleDeiTForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert any("mask_token" in name for name in info["unexpected_keys"])


def test_a_bad_shard_is_refused(tmp_path):
    build(grown=GROWN).save_pretrained(tmp_path, max_shard_size="20KB")
    shard = max(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged"):
        AutoModelForImageClassification.from_pretrained(tmp_path)


def test_pickled_weights_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        SaddleDeiTForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize("legacy", [True, False], ids=["old-names", "new-names"])
def test_a_stock_folder_is_refused(legacy, tmp_path):
    stock_class = SaddleDeiTForImageClassification.stock_class
    stock_class(stock_class.config_class(**SHAPE)).save_pretrained(tmp_path, save_original_format=legacy)
    with pytest.raises(ValueError, match="`model_type` is 'deit'.*from_stock"):
        SaddleDeiTForImageClassification.from_pretrained(tmp_path)


def test_folders_of_the_other_architecture_are_refused(folder):
    with pytest.raises(ValueError, match="`model_type` is 'saddle_deit'"):
        SaddleViTForImageClassification.from_pretrained(folder)


def test_stock_cannot_load_a_grown_model_wrongly(folder):
    with pytest.raises(RuntimeError, match="may vary across layers"):
        DeiTForImageClassification.from_pretrained(folder)


# --------------------------------------------------------------------------------------------------- load_state_dict
PAIRS = {"grow": (None, GROWN), "shrink": (GROWN, None), "deepen": (SMALLER, GROWN), "flatten": (GROWN, SMALLER)}


@every_class
@pytest.mark.parametrize("before, after", PAIRS.values(), ids=PAIRS)
def test_load_state_dict_takes_the_shapes(model_class, before, after, pixels):
    model, saved = build(model_class, before, seed=1), build(model_class, after, seed=2)
    keys = model.load_state_dict(saved.state_dict(), strict=False)
    assert not keys.missing_keys and not keys.unexpected_keys
    assert_same(model, saved, pixels)
    assert model.config == saved.config


@pytest.mark.parametrize("before", UNITS)
@pytest.mark.parametrize("after", UNITS)
def test_load_state_dict_takes_the_unit(before, after, pixels):
    model, saved = build(grown=SMALLER, skip_unit=before, seed=1), build(grown=GROWN, skip_unit=after, seed=2)
    model.load_state_dict(saved.state_dict(), strict=True)
    assert_same(model, saved, pixels)
    assert model.config.skip_unit == after


def test_load_state_dict_keeps_dtype_mode_and_frozen_layers():
    model = build().to(torch.float64).train()
    model.deit.layers[0].requires_grad_(False)
    model.load_state_dict(build(grown=GROWN, seed=2).state_dict())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert not any(parameter.requires_grad for parameter in model.deit.layers[0].parameters())
    assert all(parameter.requires_grad for parameter in model.deit.layers[1].parameters())
    assert all(module.training for module in model.modules())


def test_load_state_dict_of_the_encoder_alone(pixels):
    model, saved = build(seed=1), build(grown=GROWN, seed=2)
    model.deit.load_state_dict(saved.deit.state_dict(), strict=True)
    assert_same(model.deit, saved.deit, pixels)
    assert model.config.per_layer_config[0].intermediate_size == 45


@pytest.mark.parametrize("before, after", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("unit", UNITS)
def test_parameters_whose_shape_stays_are_the_same_objects(before, after, unit):
    model, saved = build(grown=before, seed=1), build(grown=after, skip_unit=unit, seed=2)
    held, random_state = dict(model.named_parameters()), torch.get_rng_state()
    model.load_state_dict(saved.state_dict())
    kept = {name for name, parameter in model.named_parameters() if parameter is held.get(name)}
    assert kept == {
        name for name, value in saved.named_parameters() if name in held and held[name].shape == value.shape
    }
    assert len(kept) > 20
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("before, after", PAIRS.values(), ids=PAIRS)
def test_what_is_frozen_stays_frozen_parameter_by_parameter(before, after):
    """Biases only, with the gains of branches; new parameters are trained as the neurons they feed."""
    model = build(grown=before, seed=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(("bias", "gain")))
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.load_state_dict(build(grown=after, seed=2).state_dict())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == trained.get(name, name.endswith("bias")), name


def test_a_trained_branch_of_a_frozen_linear_stays_trained():
    model = build(grown=SMALLER, seed=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".skip." in name)
    model.load_state_dict(build(grown={0: {"skip_sizes": {"mlp.fc1": [5], "mlp.fc2": [1]}}}, seed=2).state_dict())
    now = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert sum(now.values()) == 6 and all(trained for name, trained in now.items() if ".skip." in name)
    assert not any(trained for name, trained in now.items() if ".skip." not in name)


def test_a_grown_model_that_loads_again_keeps_its_parameters():
    model = build(grown=GROWN)
    parameters = [id(parameter) for parameter in model.parameters()]
    model.load_state_dict(build(grown=GROWN, seed=2).state_dict())
    kept = [id(parameter) for parameter in model.parameters()]
    assert kept == parameters


BAD_STATES = {
    "wrong-shape": ({FC1 + "weight": torch.zeros(45, 31)}, FC1 + "weight"),
    "widths-disagree": ({FC1 + "bias": torch.zeros(44)}, FC1 + "bias"),
    "target-too-large": ({FC1 + "skip.target": torch.arange(40, 46)}, FC1 + "skip.target"),
    "target-float": ({FC1 + "skip.target": torch.arange(6.0)}, FC1 + "skip.target"),
    "target-too-short": ({FC1 + "skip.target": torch.arange(5)}, FC1 + "skip.target"),
    "target-empty": ({FC1 + "skip.target": torch.arange(0)}, FC1 + "skip.target"),
    "nested-target": ({FC1 + "skip.linear.skip.target": torch.arange(4, 7)}, FC1 + "skip.linear.skip.target"),
    "no-target": ({FC1 + "skip.target": None}, f"lacks.*{FC1}skip.target"),
    "no-branch-bias": ({FC1 + "skip.linear.skip.linear.bias": None}, f"lacks.*{FC1}skip.linear.skip.linear.bias"),
    "no-gain": ({FC1 + "skip.gain": None}, "mixes kinds"),
    "branch-without-rows": ({"deit.layers.1.mlp.fc1.skip.gain": torch.zeros(3)}, "layers.1.mlp.fc1.skip.gain"),
    "mixed-units": ({FC1 + "skip.linear.twin_weight": torch.zeros(6, 32)}, "kind|has.*twin_weight"),
}


@pytest.mark.parametrize("before", [None, GROWN], ids=["ungrown", "grown"])
@pytest.mark.parametrize("bad, message", BAD_STATES.values(), ids=BAD_STATES)
def test_a_bad_state_leaves_the_model_unchanged(before, bad, message, pixels):
    model, twin = build(grown=before, seed=1), build(grown=before, seed=1)
    state = {
        name: tensor for name, tensor in (build(grown=GROWN, seed=2).state_dict() | bad).items() if tensor is not None
    }
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state, strict=False)
    assert_same(model, twin, pixels)
    assert model.config == twin.config


def test_a_state_of_another_class_reports_its_keys():
    model = build(SaddleDeiTForImageClassification)
    with pytest.raises(RuntimeError, match="cls_classifier.weight"):
        model.load_state_dict(build(SaddleDeiTForImageClassificationWithTeacher).state_dict())


def test_a_checkpoint_with_two_heads_is_loaded_with_both(tmp_path):
    model = build(SaddleDeiTForImageClassificationWithTeacher, GROWN)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is SaddleDeiTForImageClassificationWithTeacher
    assert torch.equal(loaded.distillation_classifier.weight, model.distillation_classifier.weight)
