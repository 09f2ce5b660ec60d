"""The recipe of the paper's scale runs on tiny data, in every arm and resumed; its augmentation does as DeiT's."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from read_guard import with_guard
from torch.utils.data import BatchSampler
from training_cases import assert_same_weights

from hf_saddle import GrowthHistory, SaddleViTConfig
from hf_saddle.growth import count_parameters


ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks" / "paper_scale"
sys.path.append(str(SCRIPTS))
import augmentation  # noqa: E402
import compare  # noqa: E402
import results  # noqa: E402
import train as recipe  # noqa: E402


TINY = {
    "augmentation": "none",
    "dataset": "digits",
    "max_samples": 48,
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "per_device_train_batch_size": 16,
    "dataloader_num_workers": 0,
    "max_steps": 6,
    "use_cpu": True,
    "disable_tqdm": True,
}
GROWING = {
    "unit": "steps",
    "at": "1 4",
    "event_budget": 600,
    "layer_threshold": 1,
    "significance": 0,
    "probe_samples": 30,
    "probe_batch_size": 15,
}


@pytest.fixture(scope="module")
def digits():
    return recipe.published_splits("digits")


@pytest.fixture(autouse=True)
def quick(monkeypatch, digits, request):
    """Digits are made once, and the card, most of the time of a tiny run, is drawn in one test only."""
    monkeypatch.setattr(recipe, "published_splits", lambda name: digits)
    if "card" not in request.node.name:
        monkeypatch.setattr(recipe.RecipeTrainer, "create_model_card", lambda self: None)


def words(folder, arm: str, **options) -> list[str]:
    """The command line of a tiny run."""
    growing = {} if arm.startswith("uniform") else GROWING
    options = TINY | growing | {"arm": arm, "output_dir": folder} | options
    return [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]


def run(folder, arm: str, **options) -> recipe.RecipeTrainer:
    return recipe.train(*recipe.parse(words(folder, arm, **options)))


# ------------------------------------------------------------------------------------------------------------ training
@pytest.mark.thinned(3)
@pytest.mark.parametrize("arm", recipe.arms.ARMS)
def test_every_arm_trains_and_leaves_a_result(arm, tmp_path):
    trainer = run(tmp_path, arm)
    result = json.loads((tmp_path / "result.json").read_text())
    uniform = arm.startswith("uniform")
    assert result["events"] == (0 if uniform else 2)
    assert (result["parameters"] > result["initial_parameters"]) is not uniform
    assert result["parameters"] == count_parameters(type(trainer.model).from_pretrained(tmp_path))
    assert result["top5_accuracy"] >= result["accuracy"] == trainer.evaluate()["eval_accuracy"]
    assert result["training"]["learning_rate"] == 5e-4 * 16 / 512
    assert result["training_flops"] > 6 * 6 * 16 * GrowthHistory.from_model(trainer.model).initial.macs * (not uniform)
    if not uniform:
        operators = {
            operator for event in GrowthHistory.from_model(trainer.model).events for operator in event.operators
        }
        assert operators <= {"paper": {"residual_pair"}, "random": {"zero_gain"}}.get(arm, {"zero_gain", "split"})
        assert result["parameters"] - result["initial_parameters"] <= 2 * 600


def test_a_trial_may_grow_at_shares_of_its_training():
    """As the command in the module's docstring does."""
    (command,) = re.findall(r"train.py (--arm default --augmentation none.*?)\n    python", recipe.__doc__, re.DOTALL)
    arguments, growth, training = recipe.parse(shlex.split(command.replace("\\\n", " ")))
    assert growth.at == [0.1, 0.25, 0.4] and growth.unit == "training" and growth.event_budget == 580_000
    assert training.num_train_epochs == 2 and arguments.arm == "default"
    assert recipe.parse(["--arm", "paper", "--at", "0.5", "--output_dir", "x", "--use_cpu"])[1].at == [0.5]


@pytest.mark.slow
def test_the_card_names_the_data_and_the_accuracy(tmp_path):
    run(tmp_path, "default")
    card = (tmp_path / "README.md").read_text()
    assert "digits" in card and "accuracy" in card and (tmp_path / "pictures").is_dir()


def test_the_last_checkpoint_is_found(tmp_path):
    run(tmp_path, "uniform-small", max_steps=3)
    resumed = run(tmp_path, "uniform-small", resume_from_checkpoint="last")
    assert (tmp_path / "checkpoint-6").is_dir() and resumed.state.epoch == 2


@pytest.mark.slow
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    """From the end of an epoch: within one, the next batch has drawn its random numbers already."""
    whole = run(tmp_path, "default")
    resumed = run(tmp_path, "default", resume_from_checkpoint=tmp_path / "checkpoint-3")
    assert resumed.state.global_step == 6 and len(resumed.model.growth_history["events"]) == 2
    assert_same_weights(resumed.model, whole.model)


def test_accumulated_batches_train_as_one(tmp_path):
    # Plain gradient descent, which sees the size of the loss.
    plain = {"mixup": 0, "cutmix": 0, "drop_path_rate": 0, "optim": "sgd", "warmup_steps": 0, "learning_rate": 30}
    one = run(tmp_path / "one", "uniform-small", **plain)
    half = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    two = run(tmp_path / "two", "uniform-small", **plain, **half)
    for ours, theirs in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_images_are_mixed_for_training_only_and_embeddings_do_not_decay(tmp_path):
    trainer = run(tmp_path, "uniform-small", max_steps=1)
    training = next(iter(trainer.get_train_dataloader()))
    evaluation = next(iter(trainer.get_eval_dataloader()))
    assert training["labels"].shape == (16, 10) and training["pixel_values"].shape == (16, 3, 16, 16)
    assert evaluation["labels"].dtype == torch.int64
    names = set(trainer.get_decay_parameter_names(trainer.model))
    kept = {name for name, value in trainer.model.named_parameters() if value.dim() > 1} - names
    assert kept == {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    environment = os.environ | {"PYTHONPATH": with_guard(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *rendezvous, str(SCRIPTS / "train.py"), *words(tmp_path, "default")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["processes"], result["batch"], result["events"]) == (2, 32, 2)


def test_options_that_cannot_be_meant_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="uniform-full` does not grow"):
        run(tmp_path, "uniform-full", event_budget=5)
    with pytest.raises(ValueError, match="`arm` must be one of uniform-small"):
        run(tmp_path, "larger")
    with pytest.raises(ValueError, match="per_device_train_batch_size"):
        run(tmp_path, "uniform-small", per_device_train_batch_size=256)
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(ImportError, match="augmentation none"):
        run(tmp_path, "uniform-small", augmentation="deit")


@pytest.mark.parametrize(("arm", "parameters"), [("paper", 11_071_204), ("uniform-full", 21_704_164)])
def test_the_starts_are_those_of_the_paper(arm, parameters):
    names = [str(label) for label in range(100)]
    with torch.device("meta"):
        model = recipe.build_model(recipe.RecipeArguments(arm=arm), names)
    assert count_parameters(model) == parameters
    if arm == "paper":
        labels = {"id2label": model.config.id2label, "label2id": model.config.label2id}
        assert model.config == SaddleViTConfig.reduced_deit_small(**labels, drop_path_rate=0.1)


# -------------------------------------------------------------------------------------------------------- augmentation
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)], ids=["mixup", "cutmix", "both"])
def test_labels_have_the_shares_of_the_images(mixup, cutmix):
    """Images of one colour, zero or one by their label: the mean of a mixed image is its share of the label one."""
    np.random.seed(0)
    collate = augmentation.MixingCollator(2, mixup, cutmix, label_smoothing=0.1)
    shares = []
    for _ in range(100):
        batch = collate([{"pixel_values": torch.full((3, 9, 7), float(i % 2)), "labels": i % 2} for i in range(4)])
        torch.testing.assert_close(batch["labels"].sum(1), torch.ones(4))
        mean = batch["pixel_values"].mean((1, 2, 3))
        torch.testing.assert_close(batch["labels"][:, 1], 0.9 * mean + 0.05)
        whole = ((batch["pixel_values"] == 0) | (batch["pixel_values"] == 1)).all().item()
        shares.append((whole, mean[1].item()))
    assert len({share for _, share in shares}) > 20
    assert {whole for whole, _ in shares} == {(True, False): {False}, (False, True): {True}}.get(
        (mixup > 0, cutmix > 0), {True, False}
    )


@pytest.mark.recipes
def test_mixing_is_that_of_timm():
    from timm.data import Mixup

    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=5)
    ours = augmentation.MixingCollator(5, 0.8, 1.0, 0.1)
    pixels, labels = torch.randn(8, 3, 12, 10), torch.arange(8) % 5
    for seed in range(30):
        np.random.seed(seed)
        wanted, wanted_labels = theirs(pixels.clone(), labels)
        np.random.seed(seed)
        np.random.rand()  # timm draws whether to mix at all
        found = ours(
            [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]
        )
        torch.testing.assert_close(found["pixel_values"], wanted)
        torch.testing.assert_close(found["labels"], wanted_labels)


@pytest.mark.recipes
@pytest.mark.parametrize("side", [16, 64, 224])
def test_the_transforms_are_those_of_deit(side):
    from torchvision import transforms

    pixels = np.random.default_rng(0).integers(0, 256, (side + 13, side + 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels if side > 32 else pixels[:side, :side])
    steps = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    if side > 32:
        bicubic = transforms.InterpolationMode.BICUBIC
        steps[:0] = [transforms.Resize(int(side / 0.875), interpolation=bicubic), transforms.CenterCrop(side)]
    found = augmentation.evaluation_processor(side)(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, transforms.Compose(steps)(image), rtol=1e-4, atol=1e-4)
    transform = augmentation.training_transform(side)
    assert transform(image).shape == (3, side, side)
    first = type(transform.transforms[0]).__name__
    assert first == ("RandomResizedCropAndInterpolation" if side > 32 else "Resize")


def test_copies_of_an_image_go_to_different_processes():
    """Accelerate deals out batches; each process has to get what DeiT's sampler gives it."""
    sampler = augmentation.RepeatedAugmentationSampler(size=50, repeats=3, batch_size=4, processes=3, seed=7)
    sampler.set_epoch(2)
    batches = BatchSampler(sampler, batch_size=4, drop_last=False)
    shares = [list(BatchSamplerShard(batches, 3, rank)) for rank in range(3)]
    generator = torch.Generator().manual_seed(9)
    order = torch.randperm(50, generator=generator).repeat_interleave(3)
    for rank, share in enumerate(shares):
        assert sum(share, []) == order[rank::3][:16].tolist()
    assert len(sampler) == 48 and len(set(sampler)) == 16
    again = list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) != again


@pytest.mark.recipes
def test_the_order_is_that_of_timm():
    from timm.data import distributed_sampler

    ours = augmentation.RepeatedAugmentationSampler(size=600, repeats=3, batch_size=64, processes=4, seed=0)
    ours.set_epoch(5)
    batches = BatchSampler(ours, batch_size=64, drop_last=False)
    for rank in range(4):
        theirs = distributed_sampler.RepeatAugSampler(range(600), num_replicas=4, rank=rank)
        theirs.set_epoch(5)
        share = sum(BatchSamplerShard(batches, 4, rank), [])
        assert share == list(theirs)[: len(share)] and len(share) == len(theirs)


# ------------------------------------------------------------------------------------------------------------- results
def test_work_is_counted_at_the_size_of_the_time():
    def event(step, macs):
        return SimpleNamespace(step=step, macs_after=macs)

    uniform = SimpleNamespace(initial=SimpleNamespace(macs=10), events=[])
    assert results.training_flops(uniform, steps=5, batch=2) == 6 * 10 * 5 * 2
    grown = SimpleNamespace(initial=uniform.initial, events=[event(1, 20), event(4, 50)])
    assert results.training_flops(grown, steps=6, batch=16) == 6 * 16 * (1 * 10 + 3 * 20 + 2 * 50)


def _result(arm: str, seed: int, accuracy: float, **fields) -> dict:
    sizes = {
        "events": 9,
        "parameters": 10,
        "macs": 20,
        "training_flops": 3e9,
        "seconds": 7200,
        "epochs": 300,
        "batch": 1024,
    }
    accuracies = {"accuracy": accuracy, "top5_accuracy": accuracy + 0.1, "best_accuracy": accuracy + 0.01}
    return {"arm": arm, "seed": seed, "dataset": "digits"} | accuracies | sizes | fields


def test_arms_are_compared_with_their_intervals():
    table = compare.table([_result("default", seed, value) for seed, value in enumerate((0.5, 0.6, 0.7))])
    # t(0.975, 2) = 4.302653, standard deviation 0.1.
    assert "| best epoch | events | parameters |" in table and "% | 9 | " in table
    assert f"| default | 3 | 60.00% ± {4.302653 * 10 / 3**0.5:.2f}% |" in table and table.endswith("| 2.00 |")
    assert "| 50.00% |" in compare.table([_result("paper", 0, 0.5)])


@pytest.mark.parametrize(
    ("other", "message"),
    [(_result("default", 0, 0.4), "two results of one seed"), (_result("paper", 0, 0.4, epochs=100), "`epochs`")],
    ids=["seed", "epochs"],
)
def test_what_cannot_be_compared_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        compare.table([_result("default", 0, 0.5), other])
