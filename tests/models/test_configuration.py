"""Configs describe every layer's shape, survive saving, and refuse what cannot be meant before memory is taken."""

import copy
import json
import math

import pytest
import torch
from model_cases import GROWN, SHAPE
from transformers import AutoConfig, DeiTConfig, DeiTModel

from hf_saddle import SaddleDeiTConfig, SaddleViTConfig, SaddleViTForImageClassification, SaddleViTModel
from hf_saddle.models.shape_checks import MAX_LAYERS, MAX_SIZE, MAX_SKIP_DEPTH


every_config = pytest.mark.parametrize("config_class", [SaddleDeiTConfig, SaddleViTConfig], ids=["deit", "vit"])

# (field that the message has to name, config fields)
BAD = {
    "negative": ("hidden_size", {"hidden_size": -1}),
    "zero": ("intermediate_size", {"intermediate_size": 0}),
    "float": ("hidden_size", {"hidden_size": 32.0}),
    "bool": ("num_attention_heads", {"num_attention_heads": True}),
    "string": ("num_channels", {"num_channels": "3"}),
    "none": ("hidden_size", {"hidden_size": None}),
    "huge": ("intermediate_size", {"intermediate_size": 10**12}),
    "layers-zero": ("num_hidden_layers", {"num_hidden_layers": 0}),
    "layers-huge": ("num_hidden_layers", {"num_hidden_layers": MAX_LAYERS + 1}),
    "head_dim-zero": ("head_dim", {"head_dim": 0}),
    "head_dim-float": ("head_dim", {"head_dim": 8.0}),
    "more-heads-than-channels": ("head_dim", {"num_attention_heads": 64}),
    "image-float": ("image_size", {"image_size": 30.0}),
    "image-one-side": ("image_size", {"image_size": [30]}),
    "image-three-sides": ("image_size", {"image_size": [30, 30, 30]}),
    "patch-negative-side": ("patch_size", {"patch_size": [2, -2]}),
    "patch-larger-than-image": ("patch_size", {"patch_size": 31}),
    "labels-negative": ("num_labels", {"num_labels": -1}),
    "labels-float": ("num_labels", {"num_labels": 2.5}),
    "labels-bool": ("num_labels", {"num_labels": True}),
    "labels-billion": ("num_labels", {"num_labels": 10**9}),
    "pooler-huge": ("pooler_output_size", {"pooler_output_size": 10**12}),
    "activation": ("hidden_act", {"hidden_act": "gelu_of_nobody"}),
    "pooler-activation": ("pooler_act", {"pooler_act": ["tanh"]}),
    "dropout": ("hidden_dropout_prob", {"hidden_dropout_prob": 1.5}),
    "dropout-nan": ("attention_probs_dropout_prob", {"attention_probs_dropout_prob": math.nan}),
    "drop-path-all": ("drop_path_rate", {"drop_path_rate": 1.0}),
    "drop-path-negative": ("drop_path_rate", {"drop_path_rate": -0.1}),
    "drop-path-string": ("drop_path_rate", {"drop_path_rate": "0.1"}),
    "eps-negative": ("layer_norm_eps", {"layer_norm_eps": -1e-6}),
    "range-string": ("initializer_range", {"initializer_range": "0.02"}),
    "bias-string": ("qkv_bias", {"qkv_bias": "yes"}),
    "scaling-zero": ("attention_scaling", {"attention_scaling": 0.0}),
    "scaling-nan": ("attention_scaling", {"attention_scaling": math.nan}),
    "scaling-string": ("attention_scaling", {"attention_scaling": "0.1"}),
    "unit-unknown": ("skip_unit", {"skip_unit": "pair"}),
    "unit-none": ("skip_unit", {"skip_unit": None}),
    "skip-list": ("skip_sizes", {"skip_sizes": [3]}),
    "skip-unknown-linear": ("skip_sizes", {"skip_sizes": {"mlp.fc3": [3]}}),
    "skip-integer-key": ("skip_sizes", {"skip_sizes": {1: [3]}}),
    "skip-not-a-list": ("skip_sizes", {"skip_sizes": {"mlp.fc1": 3}}),
    "skip-empty": ("skip_sizes", {"skip_sizes": {"mlp.fc1": []}}),
    "skip-zero": ("skip_sizes", {"skip_sizes": {"mlp.fc1": [3, 0]}}),
    "skip-float": ("skip_sizes", {"skip_sizes": {"mlp.fc1": [3.0]}}),
    "skip-bool": ("skip_sizes", {"skip_sizes": {"mlp.fc1": [True]}}),
    "skip-too-deep": ("skip_sizes", {"skip_sizes": {"mlp.fc1": [1] * (MAX_SKIP_DEPTH + 1)}}),
    "layer-out-of-range": ("per_layer_config[2]", {"per_layer_config": {2: {"intermediate_size": 5}}}),
    "layer-negative": ("per_layer_config[-1]", {"per_layer_config": {-1: {"intermediate_size": 5}}}),
    "layer-float": ("per_layer_config[1.0]", {"per_layer_config": {1.0: {"intermediate_size": 5}}}),
    "layer-name": ("per_layer_config[first]", {"per_layer_config": {"first": {"intermediate_size": 5}}}),
    "layer-superscript": ("per_layer_config[¹]", {"per_layer_config": {"¹": {"intermediate_size": 5}}}),
    "layer-twice": ("per_layer_config", {"per_layer_config": {"0": {"intermediate_size": 5}, "00": {}}}),
    "layer-list": ("per_layer_config", {"per_layer_config": [{"intermediate_size": 5}]}),
    "layer-shape-integer": ("per_layer_config[0]", {"per_layer_config": {0: 5}}),
    "layer-other-field": ("hidden_size", {"per_layer_config": {0: {"hidden_size": 64}}}),
    "layer-width-float": (
        "per_layer_config[0].intermediate_size",
        {"per_layer_config": {0: {"intermediate_size": 4.5}}},
    ),
    "layer-width-none": (
        "per_layer_config[0].intermediate_size",
        {"per_layer_config": {0: {"intermediate_size": None}}},
    ),
    "layer-skip-negative": ("skip_sizes['mlp.fc1']", {"per_layer_config": {0: {"skip_sizes": {"mlp.fc1": [-1]}}}}),
    "layer-skip-unknown": ("skip_sizes", {"per_layer_config": {0: {"skip_sizes": {"fc1": [1]}}}}),
    # Every field within its bounds, terabytes together.
    "terabytes-wide": ("hidden_size", {"hidden_size": MAX_SIZE, "num_attention_heads": MAX_SIZE}),
    "terabytes-heads": ("head_dim", {"num_attention_heads": MAX_SIZE, "hidden_size": MAX_SIZE, "head_dim": MAX_SIZE}),
    "terabytes-positions": ("image_size", {"image_size": MAX_SIZE, "patch_size": 1}),
    "terabytes-patches": ("image_size", {"image_size": MAX_SIZE, "patch_size": MAX_SIZE}),
    "terabytes-labels": ("hidden_size", {"num_labels": MAX_SIZE, "hidden_size": MAX_SIZE - 4}),
    "terabytes-branches": (
        "skip_sizes",
        {"intermediate_size": MAX_SIZE, "skip_sizes": {"mlp.fc2": [MAX_SIZE] * MAX_SKIP_DEPTH}},
    ),
}


@every_config
@pytest.mark.parametrize("field, bad", BAD.values(), ids=BAD)
def test_refuses_at_construction(config_class, field, bad):
    with pytest.raises(ValueError) as error:
        config_class(**SHAPE | bad)
    assert (
        f"`{field}" in str(error.value) or f"'{field}'" in str(error.value) or field in str(error.value).split("`")[1]
    )


@pytest.mark.parametrize(
    "field, bad", [BAD[name] for name in ("float", "labels-float", "layer-width-float", "terabytes-positions")]
)
def test_refuses_a_file(tmp_path, field, bad):
    fields = json.loads(SaddleDeiTConfig(**SHAPE).to_json_string(use_diff=False)) | bad
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="per_layer_config|" + field):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", '{"hidden_size": 32'], ids=["empty", "truncated"])
def test_refuses_a_broken_file(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((OSError, ValueError), match="config.json"):
        SaddleDeiTConfig.from_pretrained(tmp_path)


@every_config
@pytest.mark.parametrize(
    "field, value",
    [
        ("hidden_size", -1),
        ("num_labels", 1.5),
        ("skip_unit", "pair"),
        ("skip_sizes", {"fc1": [2]}),
        ("qkv_bias", 3),
        ("per_layer_config", {5: {"intermediate_size": 5}}),
        ("per_layer_config", {0: {"intermediate_size": 0}}),
    ],
    ids=["size", "labels", "unit", "skip", "bias", "layer", "width"],
)
def test_a_refused_assignment_changes_nothing(config_class, field, value):
    config = config_class(**SHAPE, per_layer_config=GROWN)
    before = config.to_dict()
    with pytest.raises(ValueError, match=field):
        setattr(config, field, value)
    assert config.to_dict() == before


@every_config
@pytest.mark.parametrize("grown", [None, GROWN], ids=["ungrown", "grown"])
@pytest.mark.parametrize("copied", ["dict", "json", "folder", "auto", "deepcopy"])
def test_round_trip(config_class, grown, copied, tmp_path):
    own = {"skip_unit": "residual", "attention_scaling": 0.2, "drop_path_rate": 0.3}
    config = config_class(**SHAPE, **own, per_layer_config=grown)
    if copied == "dict":
        again = config_class.from_dict(config.to_dict())
    elif copied == "json":
        again = config_class(**json.loads(config.to_json_string()))
    elif copied == "deepcopy":
        again = copy.deepcopy(config)
    else:
        config.save_pretrained(tmp_path)
        again = (AutoConfig if copied == "auto" else config_class).from_pretrained(tmp_path)
    assert type(again) is config_class
    assert again == config and again is not config
    for layer_idx in range(2):
        for field in ("intermediate_size", "skip_sizes", *own):
            assert getattr(again.per_layer_config[layer_idx], field) == getattr(
                config.per_layer_config[layer_idx], field
            )


def test_a_copy_is_independent():
    config = SaddleDeiTConfig(**SHAPE, per_layer_config=GROWN)
    again = copy.deepcopy(config)
    again.per_layer_config = {0: {"intermediate_size": 50}}
    assert config.per_layer_config[0].intermediate_size == 45
    assert config != again


def test_shapes_are_sparse_in_the_file_and_of_todays_form(tmp_path):
    SaddleDeiTConfig(**SHAPE, per_layer_config={1: {"intermediate_size": 80}}).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["widths"] == {"layers.1.mlp.fc1": 80} and fields["skip_sizes"] is None
    assert fields["model_type"] == "saddle_deit" and fields["intermediate_size"] == 37
    assert "this model grew: load it with hf_saddle" in fields["per_layer_config"]["0"]["hidden_act"]
    with pytest.raises(RuntimeError, match="may vary across layers"):
        DeiTModel(DeiTConfig.from_pretrained(tmp_path))


def test_a_file_of_an_older_version_is_understood(tmp_path):
    """Its branches have the activation of the model, whichever it is."""
    fields = SaddleDeiTConfig(**SHAPE, hidden_act="relu").to_dict()
    fields |= {"per_layer_config": {str(layer): shapes for layer, shapes in GROWN.items()}}
    for name in ("widths", "skip_activation"):
        del fields[name]
    (tmp_path / "config.json").write_text(json.dumps(fields | {"dtype": None}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.widths == {"layers.0.mlp.fc1": 45} and config.skip_activation == "relu"
    assert config.skip_sizes == {
        f"layers.{layer}.{name}": sizes for layer in GROWN for name, sizes in GROWN[layer]["skip_sizes"].items()
    }
    assert SaddleDeiTConfig(**SHAPE, hidden_act="relu").skip_activation == "gelu"


def test_layers_without_an_entry_have_the_global_shape():
    config = SaddleDeiTConfig(**SHAPE, skip_sizes={"mlp.fc2": [3]}, per_layer_config={1: {"intermediate_size": 80}})
    assert [config.per_layer_config[i].intermediate_size for i in range(2)] == [37, 80]
    assert [config.per_layer_config[i].skip_sizes for i in range(2)] == [{"mlp.fc2": [3]}] * 2


@pytest.mark.parametrize("field", ["hidden_size", "skip_unit", "num_labels"])
def test_configs_that_differ_are_not_equal(field):
    other = {"hidden_size": 64, "skip_unit": "residual", "num_labels": 4}[field]
    assert SaddleDeiTConfig(**SHAPE) != SaddleDeiTConfig(**SHAPE | {field: other})
    assert SaddleDeiTConfig(**SHAPE) == SaddleDeiTConfig(**SHAPE)


def test_the_types_differ():
    assert SaddleDeiTConfig(**SHAPE) != SaddleViTConfig(**SHAPE)
    assert SaddleDeiTConfig(**SHAPE) != DeiTConfig(**SHAPE)


def test_head_dim_follows_the_width_unless_given():
    assert SaddleDeiTConfig(**SHAPE).head_dim == 8
    assert SaddleDeiTConfig(**SHAPE, head_dim=5).head_dim == 5


@pytest.mark.parametrize(
    "config, parameters",
    [
        (SaddleViTConfig.reduced_deit_small(num_labels=100), 11_071_204),
        (
            SaddleViTConfig(
                hidden_size=384, num_attention_heads=6, intermediate_size=1536, layer_norm_eps=1e-6, num_labels=100
            ),
            21_704_164,
        ),
    ],
    ids=["reduced DeiT-S", "DeiT-S"],
)
def test_number_of_parameters(config, parameters):
    with torch.device("meta"):
        model = SaddleViTForImageClassification(config)
    assert model.num_parameters() == parameters


def test_the_reduced_deit_small_keeps_the_scale_of_the_scores():
    with torch.device("meta"):
        model = SaddleViTModel(SaddleViTConfig.reduced_deit_small(num_hidden_layers=1), add_pooling_layer=False)
    attention = model.layers[0].attention
    assert attention.scaling == 64**-0.5
    assert (attention.head_dim, attention.q_proj.out_features, attention.o_proj.in_features) == (32, 192, 192)
