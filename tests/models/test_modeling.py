"""Grown models do what stock models do: outputs, attention backends, checkpointing, export, pipelines, training."""

import copy

import numpy as np
import pytest
import torch
from model_cases import (
    CHECKPOINTING,
    CLASSIFIERS,
    GROWN,
    build,
    every_class,
    every_classifier,
    every_growth,
    every_unit,
    output,
)
from PIL import Image
from transformers import pipeline
from transformers.models.vit import ViTImageProcessorPil

from hf_saddle import SaddleDeiTForImageClassification, SaddleDeiTModel, SaddleViTForImageClassification
from hf_saddle.models import GrowableLinear
from hf_saddle.models.shapes import Shapes


def gradients(model, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(pixel_values=pixels, labels=torch.tensor([0, 2])).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@every_class
@every_growth
def test_shapes_of_the_output(model_class, grown, pixels):
    model = build(model_class, grown)
    tokens = 225 + (2 if "DeiT" in model_class.__name__ else 1)
    expected = (2, 3) if "Classification" in model_class.__name__ else (2, tokens, 32)
    assert output(model, pixels).shape == expected


@every_class
def test_growth_changes_the_output(model_class, pixels):
    assert not torch.allclose(output(build(model_class, GROWN), pixels), output(build(model_class), pixels), atol=1e-3)


@every_classifier
def test_hidden_states_and_attentions(model_class, pixels):
    model = build(model_class, GROWN, attn_implementation="eager")
    out = model(pixels, output_hidden_states=True, output_attentions=True)
    tokens = out.hidden_states[0].shape[1]
    assert [state.shape for state in out.hidden_states] == [(2, tokens, 32)] * 3
    assert [attention.shape for attention in out.attentions] == [(2, 4, tokens, tokens)] * 2
    torch.testing.assert_close(out.attentions[1].sum(-1), torch.ones(2, 4, tokens))


@every_unit
@every_classifier
def test_attention_backends_agree_and_can_be_switched(model_class, unit, pixels):
    model = build(model_class, GROWN, skip_unit=unit, attn_implementation="eager")
    eager = output(model, pixels)
    model.set_attn_implementation("sdpa")
    assert model.base_model.layers[0].attention.config._attn_implementation == "sdpa"
    torch.testing.assert_close(output(model, pixels), eager, rtol=1e-4, atol=1e-5)
    model.load_state_dict(build(model_class, None, seed=1).state_dict())
    model.set_attn_implementation("eager")
    expected = build(model_class, None, seed=1, attn_implementation="eager")
    assert torch.equal(output(model, pixels), output(expected, pixels))


@every_classifier
@every_growth
def test_other_image_sizes(model_class, grown, pixels):
    model = build(model_class, grown)
    with pytest.raises(ValueError, match="image size"):
        output(model, pixels[..., :24, :26])
    assert output(model, pixels[..., :24, :26], interpolate_pos_encoding=True).shape == (2, 3)
    torch.testing.assert_close(output(model, pixels, interpolate_pos_encoding=True), output(model, pixels))


@every_classifier
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "saved-tensors"])
def test_gradient_checkpointing(model_class, reentrant, pixels):
    model = build(model_class, GROWN).train()
    expected = gradients(model, pixels)
    getattr(model, CHECKPOINTING)({"use_reentrant": reentrant})
    calls = []
    model.base_model.layers[1].mlp.fc1.register_forward_hook(lambda *args: calls.append(1))
    actual = gradients(model, pixels)
    assert len(calls) == 2
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@every_unit
@every_classifier
def test_every_parameter_of_a_grown_model_learns(model_class, unit, pixels):
    for name, gradient in gradients(build(model_class, GROWN, skip_unit=unit).train(), pixels).items():
        # Keys shift all scores of a query by the same amount: their bias has no gradient but rounding.
        assert gradient.abs().max() > (0 if "k_proj" in name else 1e-9), name


@every_unit
def test_a_fresh_model_of_every_unit_has_finite_outputs_and_known_targets(unit, pixels):
    config = SaddleDeiTModel.config_class(**build().config.to_dict() | {"skip_unit": unit, "per_layer_config": GROWN})
    model = SaddleDeiTForImageClassification(config).eval()
    assert output(model, pixels).isfinite().all()
    for linear in (site.module for site in model.growable_linears()):
        if linear.skip is not None:
            assert torch.equal(linear.skip.target, torch.arange(len(linear.skip.target)) % linear.out_features)
            assert linear.skip.shared_targets == (len(linear.skip.target) > linear.out_features)


def test_tokens_and_positions_of_a_fresh_deit_are_not_zero():
    torch.manual_seed(0)
    embeddings = SaddleDeiTModel(build().config).embeddings
    for tensor in (embeddings.cls_token, embeddings.distillation_token, embeddings.position_embeddings):
        assert 0.01 < tensor.std() < 0.03


@every_classifier
def test_growable_linears_are_in_the_order_of_the_parameters(model_class):
    model = build(model_class, GROWN)
    found = {site.path: site.module for site in model.growable_linears()}
    expected = {name: module for name, module in model.named_modules() if isinstance(module, GrowableLinear)}
    assert found.keys() == expected.keys() and all(found[name] is expected[name] for name in expected)
    layers = [site.block for site in model.growable_linears()]
    assert layers == sorted(layers)


def test_shapes_are_those_of_the_config():
    model = build(grown=GROWN)
    assert model.shapes().widths == {"layers.0.mlp.fc1": 45, "layers.1.mlp.fc1": 37}
    assert model.shapes() == Shapes.of_config(model.config)
    config = copy.deepcopy(model.config)
    model.config.per_layer_config = None
    model.shapes().write_(model.config, model.config.skip_unit)
    assert model.config == config


def test_the_shapes_of_an_ungrown_model_add_no_layers_to_the_config():
    model = build()
    model.shapes().write_(model.config, model.config.skip_unit)
    assert model.config.widths is None and model.config.skip_sizes is None
    assert model.config.intermediate_size == 37


@every_class
def test_deepcopy_is_independent(model_class, pixels):
    model = build(model_class, GROWN)
    twin = copy.deepcopy(model)
    expected = output(model, pixels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.config.per_layer_config = {0: {"intermediate_size": 99}}
    assert torch.equal(output(twin, pixels), expected)
    assert twin.config.per_layer_config[0].intermediate_size == 45


@pytest.mark.thinned(3)
@every_unit
@pytest.mark.parametrize("model_class", CLASSIFIERS, ids=["deit", "vit"])
def test_export(model_class, unit, pixels, tmp_path):
    model = build(model_class, GROWN, skip_unit=unit)
    torch.export.save(torch.export.export(model, (pixels,), strict=False), tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(exported(pixels).logits, model(pixels).logits, rtol=1e-5, atol=1e-6)


@every_growth
def test_pipeline(grown, tmp_path):
    labels = {0: "cat", 1: "dog", 2: "ship"}
    model = build(SaddleViTForImageClassification, grown, id2label=labels, label2id={v: k for k, v in labels.items()})
    processor = ViTImageProcessorPil(size={"height": 30, "width": 30})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    found = pipeline("image-classification", model=str(tmp_path))(image, top_k=3)
    scores = output(model, processor(image, return_tensors="pt")["pixel_values"]).softmax(-1)[0]
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        {labels[i]: float(scores[i]) for i in range(3)}, rel=1e-5
    )


@every_classifier
def test_a_grown_model_can_overfit(model_class, pixels):
    model = build(model_class, GROWN).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        losses.append(model(pixel_values=pixels, labels=torch.tensor([0, 2])).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]
