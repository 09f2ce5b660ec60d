"""The probe leaves no trace, and copes with checkpointing, autocast, frozen, shared and in-place parts."""

import copy
import logging
import random
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from curvature_cases import EXACT, MLP, captured, cross_entropy, transformer_case
from peft import LoraConfig, get_peft_model
from torch import distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel, Wav2Vec2Config, Wav2Vec2ForCTC

from hf_saddle.curvature import analyze_curvature
from hf_saddle.curvature.capture.capture import capture
from hf_saddle.curvature.ranks import Ranks
from hf_saddle.curvature.settings import Settings


def hooks_of(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def state_of(model):
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "gradients": gradients,
        "modes": [module.training for module in model.modules()],
        "hooks": hooks_of(model),
        "random": [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()],
    }


def assert_same_state(before, after):
    assert before["modes"] == after["modes"]
    assert before["hooks"] == after["hooks"]
    assert before["random"][1:] == after["random"][1:]
    assert torch.equal(before["random"][0], after["random"][0])
    for a, b in zip(before["parameters"] + before["gradients"], after["parameters"] + after["gradients"], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("fails", [False, True], ids=["success", "exception"])
def test_the_model_and_the_random_generators_are_left_as_they_were(fails):
    case = transformer_case()
    case.model.train()
    case.model.mlp.eval()
    cross_entropy(case.model, case.batch).backward()
    case.model.head.weight.grad = None
    before = state_of(case.model)

    def batches():
        torch.rand(3), random.random(), np.random.rand()
        yield case.batch

    def loss(model, batch):
        torch.rand(3), random.random(), np.random.rand()
        assert not model.training
        value = cross_entropy(model, batch)
        if fails:
            raise RuntimeError("interrupted")
        return value

    with pytest.raises(RuntimeError, match="interrupted") if fails else nullcontext():
        analyze_curvature(case.model, batches(), ("width", "depth"), loss=loss)
    assert_same_state(before, state_of(case.model))


def test_an_exception_in_the_backward_pass_removes_the_hooks():
    case = transformer_case()
    case.model.mlp.fc1.weight.data[0, 0] = 1e200  # squares overflow in the layer's statistics, the loss stays finite
    before = hooks_of(case.model)
    with pytest.raises(ValueError, match="NaN or infinity"):
        analyze_curvature(case.model, [case.batch], "width", loss=cross_entropy, linears=["mlp.fc1"])
    assert hooks_of(case.model) == before


@pytest.mark.distributed
def test_a_ddp_wrapper_does_not_notice(tmp_path):
    case = transformer_case()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped, reduced = nn.parallel.DistributedDataParallel(case.model), []

        def count(state, bucket):
            reduced.append(bucket.index())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        wrapped.register_comm_hook(None, count)
        cross_entropy(wrapped, case.batch).backward()
        after_backward = len(reduced)
        gradients = [parameter.grad.clone() for parameter in case.model.parameters()]
        report = analyze_curvature(wrapped, [case.batch], loss=cross_entropy)
    finally:
        dist.destroy_process_group()
    assert after_backward > 0 and len(reduced) == after_backward and len(report)
    assert all(torch.equal(p.grad, g) for p, g in zip(case.model.parameters(), gradients, strict=True))


def test_it_works_under_no_grad_and_inference_mode():
    case = transformer_case()
    expected = analyze_curvature(case.model, [case.batch], loss=cross_entropy)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            report = analyze_curvature(case.model, [case.batch], loss=cross_entropy)
        torch.testing.assert_close(report["mlp.fc1", "depth"].eigenvalue, expected["mlp.fc1", "depth"].eigenvalue)


class Checkpointed(MLP):
    """An MLP whose activations are recomputed in the backward pass."""

    reentrant = False

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("criterion", ["width", "depth"])
def test_nonreentrant_checkpointing_changes_nothing(criterion):
    case = transformer_case()
    expected = analyze_curvature(case.model, [case.batch], criterion, loss=cross_entropy, solver=EXACT)
    case.model.mlp.__class__ = Checkpointed
    report = analyze_curvature(case.model, [case.batch], criterion, loss=cross_entropy, solver=EXACT)
    assert [layer.linear for layer in report] == [layer.linear for layer in expected]
    for layer, other in zip(report, expected, strict=True):
        torch.testing.assert_close(layer.eigenvalue, other.eigenvalue)


def test_reentrant_checkpointing_is_refused_with_a_remedy():
    case = transformer_case()
    case.model.mlp.__class__ = type("Reentrant", (Checkpointed,), {"reentrant": True, "forward": Checkpointed.forward})
    with pytest.raises(ValueError, match="use_reentrant"):
        analyze_curvature(case.model, [case.batch], loss=cross_entropy)


@pytest.mark.parametrize("criterion", ["width", "depth"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_agrees_with_float32(criterion, dtype):
    case = transformer_case(samples=32, width=16, hidden=24)
    model, batch = case.model.float(), {"x": case.batch["x"].float(), "y": case.batch["y"]}

    def autocast_loss(model, batch):
        with torch.autocast("cpu", dtype=dtype):
            return cross_entropy(model, batch)

    full, half = (
        analyze_curvature(model, [batch], criterion, loss=loss, linears=["mlp.fc1"], solver=EXACT)[
            "mlp.fc1", criterion
        ]
        for loss in (cross_entropy, autocast_loss)
    )
    assert half.direction.dtype == torch.float32
    difference = (full.fit_eigenvalue - half.fit_eigenvalue).abs() / full.fit_eigenvalue.abs().max()
    assert float(difference.max()) < 0.1
    assert float(difference.median()) < 0.02


def test_a_half_precision_model_is_analysed_in_float32():
    case = transformer_case(samples=32, width=16, hidden=24)
    model, batch = case.model.bfloat16(), {"x": case.batch["x"].bfloat16(), "y": case.batch["y"]}
    layer = analyze_curvature(model, [batch], "width", loss=cross_entropy, linears=["mlp.fc1"])["mlp.fc1", "width"]
    assert layer.direction.dtype == torch.float32
    assert layer.candidates > 0


def test_frozen_layers_are_analysed_when_named_and_skipped_otherwise(caplog):
    case = transformer_case()
    expected = captured(case, "mlp.fc1", "depth").dense()
    case.model.mlp.requires_grad_(False)
    with caplog.at_level(logging.INFO, "hf_saddle"):
        report = analyze_curvature(case.model, [case.batch], loss=cross_entropy)
    assert "frozen" in report.skipped["mlp.fc1"]
    assert "mlp.fc1" in caplog.text
    case.model.requires_grad_(False)
    torch.testing.assert_close(captured(case, "mlp.fc1", "depth").dense(), expected)
    assert len(analyze_curvature(case.model, [case.batch], loss=cross_entropy, linears=["mlp.fc1"])) == 1


def test_a_layer_that_is_used_twice_sums_over_its_uses():
    case = transformer_case()
    twice = nn.Sequential(case.model.mlp, case.model.mlp)
    case.model.mlp = twice
    apart = copy.deepcopy(case)
    apart.model.mlp = nn.Sequential(apart.model.mlp[0], copy.deepcopy(apart.model.mlp[0]))
    for kind in ("width", "depth"):
        shared = captured(case, "mlp.0.fc1", kind).dense()
        parts = [captured(apart, name, kind).dense() for name in ("mlp.0.fc1", "mlp.1.fc1")]
        torch.testing.assert_close(shared, parts[0] + parts[1])
        report = analyze_curvature(
            case.model, [case.batch], kind, loss=cross_entropy, linears=["mlp.0.fc1"], solver=EXACT
        )
        if kind == "width":
            lowest = torch.linalg.eigvalsh(shared)[:, 0]
            torch.testing.assert_close(report["mlp.0.fc1", "width"].fit_eigenvalue, lowest, rtol=1e-8, atol=1e-12)


class Positions(nn.Module):
    """A layer that reads the samples, and what belongs to none of them, as relative positions are."""

    def __init__(self):
        super().__init__()
        self.both, self.out = nn.Linear(6, 5), nn.Linear(5, 3)
        self.positions = nn.Parameter(torch.randn(1, 7, 6))

    def forward(self, x):
        return self.out(torch.tanh(self.both(x) + self.place())).mean(1)

    def place(self):
        return self.both(self.positions)


class FixedPositions(Positions):
    def place(self):
        with torch.no_grad():
            return super().place()


@pytest.mark.parametrize("kind", [Positions, FixedPositions])
def test_a_layer_is_reported_as_a_whole_or_not_at_all(kind):
    torch.manual_seed(0)
    model, batch = kind().double(), {"x": torch.randn(8, 7, 6).double(), "y": torch.randint(3, (8,))}
    report = analyze_curvature(model, [batch], "grad_norm", loss=cross_entropy)
    gradients = torch.autograd.grad(cross_entropy(model, batch), (model.both.weight, model.both.bias))
    rows = torch.cat([gradients[0], gradients[1][:, None]], 1).norm(dim=1)
    if kind is Positions:
        assert report.get("both", "grad_norm") is None
        assert "not grouped by the 8 samples" in report.skipped["both"]
    else:
        torch.testing.assert_close(report["both", "grad_norm"].eigenvalue, rows, check_dtype=False)
        assert "both" not in report.skipped
    assert report.get("out", "grad_norm") is not None


class Turned(nn.Module):
    """What is between a layer and its activation has other axes."""

    def __init__(self, width):
        super().__init__()
        self.first, self.activation, self.second = nn.Linear(8, width), nn.GELU(), nn.Linear(width, 4)
        self.last = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))

    def forward(self, x):
        return self.last(self.second(self.activation(self.first(x).transpose(1, 2)).transpose(1, 2))).mean(1)


@pytest.mark.parametrize("width", [16, 5], ids=["oblong", "square"])
def test_an_activation_of_reshaped_neurons_is_not_that_of_the_layer(width):
    torch.manual_seed(0)
    model, batch = Turned(width), {"x": torch.randn(32, 5, 8), "y": torch.randint(3, (32,))}
    report = analyze_curvature(model, [batch], ("width", "depth"), loss=cross_entropy)
    assert report.get("first", "width") is None and "reshaped" in report.skipped["first"]
    assert report.get("first", "depth") is not None and report.get("last.0", "width") is not None


def test_convolutions_may_keep_channels_last():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(144, 3),
    ).double()
    images, labels = torch.randn(32, 3, 8, 8).double(), torch.randint(3, (32,))
    wanted, found = (
        analyze_curvature(
            model.eval().to(memory_format=order),
            [{"x": images.to(memory_format=order), "y": labels}],
            ("width", "depth"),
            loss=cross_entropy,
            solver=EXACT,
        )
        for order in (torch.contiguous_format, torch.channels_last)
    )
    for layer in ("0", "3"):
        for criterion in ("width", "depth")[layer == "3" :]:
            torch.testing.assert_close(found[layer, criterion].eigenvalue, wanted[layer, criterion].eigenvalue)


class FunctionalReader(MLP):
    """A gated block: z is read by the activation and, outside of any module, by a product."""

    def forward(self, x):
        z = self.fc1(x)
        return self.fc2(self.activation(z)) + z.mean(-1, keepdim=True)


class TwoConsumers(MLP):
    """The hidden layer is read by two linear layers."""

    def forward(self, x):
        return super().forward(x) + self.fc2.forward(self.other(self.activation(self.fc1(x))))


@pytest.mark.parametrize(
    ("linear", "change", "reason"),
    [
        ("mlp.fc2", lambda mlp: None, "no activation"),
        ("mlp.fc1", lambda mlp: setattr(mlp, "__class__", FunctionalReader), "not a module"),
        ("mlp.fc1", lambda mlp: setattr(mlp, "activation", nn.SiLU(inplace=True)), "inplace=False"),
    ],
    ids=["linear neurons", "functional reader", "in-place activation"],
)
def test_neurons_that_cannot_be_split_are_skipped_with_a_reason(linear, change, reason):
    case = transformer_case()
    change(case.model.mlp)
    report = analyze_curvature(case.model, [case.batch], ("width", "depth"), loss=cross_entropy, linears=[linear])
    assert report.get(linear, "width") is None
    assert report.get(linear, "depth") is not None
    assert reason in report.skipped[linear]


class SideBySide(MLP):
    """The hidden layer is read by two independent linear layers."""

    def __init__(self):
        super().__init__(6, 7, nn.GELU())
        self.fc3 = nn.Linear(7, 6)

    def forward(self, x):
        hidden = self.activation(self.fc1(x))
        return self.fc2(hidden) + self.fc3(hidden)


def test_neurons_with_several_consumers_are_skipped():
    case = transformer_case()
    case.model.mlp = SideBySide().double()
    with pytest.raises(ValueError, match="read by several layers"):
        analyze_curvature(case.model, [case.batch], "width", loss=cross_entropy, linears=["mlp.fc1"])


def test_residuals_added_in_place_are_no_obstacle():
    case = transformer_case()
    expected = captured(case, "mlp.fc2", "depth").dense()

    class InPlace(type(case.model)):
        def forward(self, x):
            x = x + self.attention(self.norm(x))
            update = self.mlp(x)
            update += x
            return self.head(update.mean(dim=1))

    case.model.__class__ = InPlace
    torch.testing.assert_close(captured(case, "mlp.fc2", "depth").dense(), expected)


def test_costs_are_those_of_one_new_unit():
    case = transformer_case(width=6, hidden=7)
    report = analyze_curvature(case.model, [case.batch], ("width", "depth"), loss=cross_entropy, linears=["mlp.fc1"])
    width, depth = report["mlp.fc1", "width"], report["mlp.fc1", "depth"]
    assert (width.cost_parameters, width.cost_macs) == (6 + 1 + 6, 6 + 6)
    assert (depth.cost_parameters, depth.cost_macs) == (6 + 2, 6 + 1)


def test_memory_is_stated_before_the_backward_pass(caplog):
    case = transformer_case()
    with caplog.at_level(logging.INFO, "hf_saddle.curvature"):
        analyze_curvature(case.model, [case.batch], loss=cross_entropy)
    assert "MiB" in caplog.text


def test_the_tokens_of_a_layer_are_freed_when_the_next_is_handed_out():
    case = transformer_case()
    linears = {name: module for name, module in case.model.named_modules() if isinstance(module, nn.Linear)}
    settings = Settings(criteria=("width", "depth"), max_tokens=10)
    captured = capture(case.model.eval(), linears, [case.batch] * 2, cross_entropy, settings=settings, ranks=Ranks())
    kept = [weakref.ref(part.gradient) for layer in captured.layers for part in layer.parts]
    assert len(kept) == 2 * (len(linears) + 1)
    alive = []
    for layer in captured:
        assert 5 <= len(layer.tokens()) <= 15
        alive.append(sum(reference() is not None for reference in kept))
    assert alive == list(range(len(kept) - 2, -1, -2))


def test_transformers_models_need_no_loss_function():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=37, image_size=30, patch_size=6
    )
    model = transformers.ViTForImageClassification(config)
    batch = {"pixel_values": torch.randn(8, 3, 30, 30), "labels": torch.randint(2, (8,))}
    report = analyze_curvature(model, [batch], ("width", "depth"))
    assert {layer.linear for layer in report if layer.criterion == "width"} == {
        f"vit.layers.{i}.mlp.fc1" for i in range(2)
    }
    # What the description of the architecture says: the classifier is none of the layers that can grow.
    assert len([layer for layer in report if layer.criterion == "depth"]) == 2 * 6
    assert report.tokens == 8 * 26
    named = analyze_curvature(model, [batch], "depth", linears=["classifier"])
    assert [layer.linear for layer in named] == ["classifier"]


def test_batches_of_a_wrapped_model_count_as_those_of_the_model():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=16)
    model, texts = GPT2LMHeadModel(config).eval(), [torch.randint(20, (8, length)) for length in (2, 12)]
    batches = [{"input_ids": text, "labels": text} for text in texts]
    with torch.no_grad():
        losses = [float(model(**batch).loss) for batch in batches]
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"]))
    for found in (model, wrapped):
        loss = analyze_curvature(found, batches, "grad_norm").loss
        assert loss == pytest.approx((losses[0] * 8 + losses[1] * 88) / 96, rel=1e-6)


def test_batches_of_speech_count_by_samples_where_its_loss_does():
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,),
        conv_stride=(8,),
        conv_kernel=(8,),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        vocab_size=12,
        ctc_loss_reduction="mean",
    )
    model = Wav2Vec2ForCTC(config).eval()
    batches = [
        {"input_values": torch.randn(4, 400), "labels": torch.randint(1, 12, (4, length))} for length in (3, 12)
    ]
    with torch.no_grad():
        losses = [float(model(**batch).loss) for batch in batches]
    assert analyze_curvature(model, batches, "grad_norm").loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    model.config.ctc_loss_reduction = "sum"
    with pytest.raises(ValueError, match="ctc_loss_reduction = 'mean'"):
        analyze_curvature(model, batches, "grad_norm")
