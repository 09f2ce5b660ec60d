"""Stock DeiT and ViT become growable models with the same parameters and, bit for bit, the same outputs."""

import pytest
import torch
import transformers
from model_cases import CLASSES, SHAPE, every_class, randomize_
from safetensors import safe_open
from transformers import PreTrainedModel

import hf_saddle
from hf_saddle import (
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleDeiTModel,
    SaddleViTForImageClassification,
    SaddleViTModel,
)


def stock_model(stock_class: type[PreTrainedModel], **config) -> PreTrainedModel:
    torch.manual_seed(0)
    model = stock_class(stock_class.config_class(**SHAPE | config)).eval()
    randomize_(model)
    return model


def outputs(model: PreTrainedModel, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(model(pixels, output_hidden_states=True))


def assert_bit_equal(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        pairs = zip(found[name], tensor, strict=True) if isinstance(tensor, tuple) else [(found[name], tensor)]
        assert all(torch.equal(a, b) for a, b in pairs), name


@every_class
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_outputs_are_bit_equal(model_class, attention, pixels):
    stock = stock_model(model_class.stock_class)
    stock.set_attn_implementation(attention)
    model = model_class.from_stock(stock)
    assert model.config._attn_implementation == attention
    assert_bit_equal(outputs(model, pixels), outputs(stock, pixels))


@every_class
def test_parameters_are_those_of_stock(model_class):
    stock = stock_model(model_class.stock_class)
    model = model_class.from_stock(stock)
    shapes = [(name, parameter.shape) for name, parameter in stock.named_parameters()]
    assert [(name, parameter.shape) for name, parameter in model.named_parameters()] == shapes
    assert dict(model.named_buffers()).keys() == dict(stock.named_buffers()).keys()
    assert model.num_parameters() == stock.num_parameters()


@every_class
@pytest.mark.parametrize("legacy", [True, False], ids=["old-names", "new-names"])
def test_folder(model_class, legacy, pixels, tmp_path):
    stock = stock_model(model_class.stock_class)
    stock.save_pretrained(tmp_path, save_original_format=legacy)
    with safe_open(tmp_path / "model.safetensors", "pt") as tensors:
        assert any("encoder.layer.0.intermediate.dense" in name for name in tensors.keys()) == legacy  # noqa: SIM118
    model = model_class.from_stock(tmp_path)
    assert not model.training
    assert_bit_equal(outputs(model, pixels), outputs(stock, pixels))


def test_sharded_folder(pixels, tmp_path):
    stock = stock_model(SaddleViTForImageClassification.stock_class)
    stock.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_bit_equal(
        outputs(SaddleViTForImageClassification.from_stock(str(tmp_path)), pixels), outputs(stock, pixels)
    )


def test_a_distilled_checkpoint_continues_with_the_class_token(pixels, tmp_path):
    stock = stock_model(SaddleDeiTForImageClassificationWithTeacher.stock_class)
    stock.save_pretrained(tmp_path)
    model = SaddleDeiTForImageClassification.from_stock(tmp_path)
    assert torch.equal(outputs(model, pixels)["logits"], outputs(stock, pixels)["cls_logits"])


@pytest.mark.parametrize("from_folder", [False, True], ids=["model", "folder"])
@pytest.mark.parametrize(
    "labels", [{"num_labels": 7}, {"id2label": dict(enumerate("abcdefg"))}], ids=["num_labels", "id2label"]
)
@pytest.mark.parametrize(
    "model_class", [c for c in CLASSES if "Classification" in c.__name__], ids=lambda c: c.__name__
)
def test_another_number_of_labels(model_class, labels, from_folder, pixels, tmp_path):
    stock = stock_model(model_class.stock_class)
    if from_folder:
        stock.save_pretrained(tmp_path)
    model = model_class.from_stock(tmp_path if from_folder else stock, **labels)
    assert outputs(model, pixels)["logits"].shape == (2, 7)
    assert model.config.num_labels == len(model.config.id2label) == 7
    assert torch.equal(
        model.base_model(pixels).last_hidden_state, getattr(stock, stock.base_model_prefix)(pixels).last_hidden_state
    )


def test_labels_are_kept(tmp_path):
    names = {0: "cat", 1: "dog", 2: "ship"}
    stock = stock_model(SaddleViTForImageClassification.stock_class, id2label=names)
    stock.save_pretrained(tmp_path)
    for source in (stock, tmp_path):
        model = SaddleViTForImageClassification.from_stock(source)
        assert model.config.id2label == names
        assert model.config.architectures in (None, [])


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_dtype_are_kept(training):
    stock = stock_model(SaddleViTModel.stock_class).to(torch.bfloat16).train(training)
    model = SaddleViTModel.from_stock(stock)
    assert model.training is training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_weights_that_stay_in_float32_in_a_half_model_stay_so(tmp_path):
    config = transformers.T5Config(vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    stock = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16).eval()
    dtypes = {name: tensor.dtype for name, tensor in stock.state_dict().items()}
    assert set(dtypes.values()) == {torch.float16, torch.float32}
    ids = torch.arange(12).view(2, 6)
    wanted = stock(input_ids=ids, decoder_input_ids=ids).logits
    model = hf_saddle.SaddleT5ForConditionalGeneration.from_stock(stock)
    for found in (model, hf_saddle.to_stock(model)):
        assert {name: tensor.dtype for name, tensor in found.state_dict().items()} == dtypes
        assert torch.equal(found(input_ids=ids, decoder_input_ids=ids).logits, wanted)


def test_the_copy_is_independent(pixels):
    stock = stock_model(SaddleViTForImageClassification.stock_class)
    model = SaddleViTForImageClassification.from_stock(stock)
    before = outputs(stock, pixels)["logits"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(outputs(stock, pixels)["logits"], before)


def test_a_stock_model_of_another_class_is_refused():
    stock = stock_model(SaddleDeiTForImageClassificationWithTeacher.stock_class)
    for model_class in (SaddleViTForImageClassification, SaddleDeiTForImageClassification, SaddleDeiTModel):
        with pytest.raises(
            ValueError, match=f"{model_class.__name__}.from_stock.*got a DeiTForImageClassificationWith"
        ):
            model_class.from_stock(stock)


@pytest.mark.parametrize(
    "saved, model_class",
    [
        (SaddleViTForImageClassification.stock_class, SaddleDeiTForImageClassification),
        (SaddleDeiTForImageClassification.stock_class, SaddleViTForImageClassification),
        (SaddleViTForImageClassification, SaddleViTForImageClassification),
    ],
    ids=["vit-into-deit", "deit-into-vit", "saddle-into-saddle"],
)
def test_a_folder_of_another_type_is_refused(saved, model_class, tmp_path):
    stock_model(saved).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model type '{model_class.stock_class.config_class.model_type}'"):
        model_class.from_stock(tmp_path)


@pytest.mark.parametrize(
    "override, tensor",
    [
        ({"intermediate_size": 50}, "mlp.fc1.weight"),
        ({"hidden_size": 64}, "embeddings.cls_token"),
        ({"image_size": 16}, "embeddings.position_embeddings"),
        ({"num_hidden_layers": 1}, "layers.1.attention.k_proj.bias"),
        ({"num_hidden_layers": 3}, "layers.2.attention.k_proj.bias"),
        ({"head_dim": 4}, "attention.q_proj.weight"),
        ({"qkv_bias": False}, "attention.q_proj.bias"),
        ({"per_layer_config": {1: {"intermediate_size": 50}}}, "layers.1.mlp.fc1.weight"),
        ({"skip_sizes": {"mlp.fc1": [2]}}, "mlp.fc1.skip.gain"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_overrides_that_change_shapes_are_refused(override, tensor):
    stock = stock_model(SaddleViTForImageClassification.stock_class)
    with pytest.raises(ValueError, match=tensor.replace(".", r"\.")):
        SaddleViTForImageClassification.from_stock(stock, **override)


def test_every_tensor_must_be_used():
    stock_class = SaddleDeiTModel.stock_class
    masked = stock_class(stock_class.config_class(**SHAPE), use_mask_token=True)
    with pytest.raises(ValueError, match="no use for.*mask_token"):
        SaddleDeiTModel.from_stock(masked)
    headless = stock_class(stock_class.config_class(**SHAPE), add_pooling_layer=False)
    with pytest.raises(ValueError, match="no source for.*pooler"):
        SaddleDeiTModel.from_stock(headless)


def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path):
    stock = stock_model(SaddleViTForImageClassification.stock_class)
    state = {name: tensor for name, tensor in stock.state_dict().items() if name != "vit.layers.1.mlp.fc1.weight"}
    stock.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"missing \['vit\.layers\.1\.mlp\.fc1\.weight'\]"):
        SaddleViTForImageClassification.from_stock(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        SaddleViTForImageClassification.from_stock(tmp_path / "nowhere")


def test_a_converted_model_can_be_saved_and_read(tmp_path, pixels):
    stock = stock_model(SaddleDeiTForImageClassification.stock_class, qkv_bias=False, image_size=[30, 20])
    model = SaddleDeiTForImageClassification.from_stock(stock)
    model.save_pretrained(tmp_path)
    again = SaddleDeiTForImageClassification.from_pretrained(tmp_path)
    assert_bit_equal(outputs(again, pixels[..., :20]), outputs(stock, pixels[..., :20]))


@pytest.fixture
def whole_clip(tmp_path):
    """A whole CLIP, of texts and images, in a folder."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    texts = sizes | {"vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    images = sizes | {"image_size": 16, "patch_size": 4}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=texts, vision_config=images)).eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_the_part_of_a_whole_clip_that_sees_images_is_taken(name, whole_clip):
    clip, folder = whole_clip
    model = getattr(hf_saddle, f"Saddle{name}").from_stock(folder)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        found, wanted = model(pixel_values=pixels), clip.vision_model(pixel_values=pixels)
        assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)
        if name == "CLIPVisionModelWithProjection":
            assert torch.equal(found.image_embeds, clip.visual_projection(wanted.pooler_output))
    assert list(model.growable_linears())


def test_a_whole_clip_is_refused_with_the_remedy(whole_clip):
    with pytest.raises(ValueError, match="`vision_config`.*SaddleCLIPVisionModel.from_stock"):
        hf_saddle.growable(whole_clip[0])
    with pytest.raises(ValueError, match="'vit', but .* is 'clip'"):
        SaddleViTForImageClassification.from_stock(whole_clip[1])
