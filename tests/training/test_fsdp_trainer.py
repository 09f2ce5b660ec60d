"""A GrowthTrainer under FSDP2 on two and four processes is one process. The runs are in `fsdp_trainer_worker.py`."""

import json

import pytest
import torch
from fsdp_cases import OWN_FIELDS, Sentences, furthest, llama_model, whole
from training_cases import CHECKPOINTING, events, growth, launch, losses, tiny, train
from transformers import AutoModelForImageClassification

from hf_saddle.growth import GrowthHistory


pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(900)]

CHECKS = {
    2: ("full", "shards", "saved", "options", "depth", "width", "memory", "mixed", "llama", "refused"),
    4: ("four_full", "four_shards", "four_grown"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    for processes, checks in CHECKS.items():
        run = launch("fsdp_trainer_worker.py", str(folder), *checks, processes=processes, timeout=800)
        assert run.returncode == 0, run.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What the first process found, by check."""
    return {name: json.loads((folder / f"{name}_0.json").read_text()) for names in CHECKS.values() for name in names}


FILES = {"full": "FULL_STATE_DICT", "shards": "SHARDED_STATE_DICT"}
FILES |= {"four_full": "four_FULL_STATE_DICT_8", "four_shards": "four_SHARDED_STATE_DICT_8"}


def alone(folder, config=None, frozen=False, **fields):
    """The same training in one process."""
    fields = OWN_FIELDS | {"per_device_train_batch_size": 16, "model": tiny(hidden_dropout_prob=0.0).double()} | fields
    if frozen:
        fields["model"].vit.embeddings.requires_grad_(False)
    return train(folder, config or growth(layers=None, criterion="grad_norm"), **fields)


def assert_equal(run, tensors, one):
    assert run["losses"] == pytest.approx(losses(one), rel=1e-6)  # which Trainer adds up in single precision
    assert run["rates"] == [group["lr"] for group in one.optimizer.param_groups]
    for ours, theirs in zip(run["events"], events(one), strict=True):
        assert ours["layers"] and ours["shapes"] == theirs["shapes"]
        assert [layer["neurons"] for layer in ours["layers"]] == [layer["neurons"] for layer in theirs["layers"]]
        for field in ("parameters_before", "parameters_after", "macs_before", "macs_after", "operators", "candidates"):
            assert ours[field] == theirs[field]
        assert ours["loss_after"] == pytest.approx(theirs["loss_after"], rel=1e-9)
    for ours, theirs in zip(tensors, whole(one.model, one.optimizer.optimizer), strict=True):
        assert furthest(ours, theirs) < 1e-9


OPTIONS = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8, "max_grad_norm": 0.05}
OPTIONS |= {"frozen": True, CHECKPOINTING: True, "lr_scheduler_type": "cosine", "warmup_steps": 2}


@pytest.mark.parametrize(
    ("check", "config", "options"),
    [
        ("full", {"num_events": 2}, {}),
        ("shards", {"num_events": 2}, {}),
        ("saved", {}, {}),
        ("options", {}, OPTIONS),
        ("four_full", {"num_events": 2}, {}),
        ("four_shards", {"num_events": 2}, {}),
    ],
)
def test_sharded_processes_are_one_process(folder, found, tmp_path, check, config, options):
    """Those of four have resumed from a checkpoint that two have saved."""
    one = alone(tmp_path, growth(layers=None, criterion="grad_norm", **config), **options)
    assert_equal(found[check], torch.load(folder / f"{FILES.get(check, check)}.pt"), one)


@pytest.mark.parametrize(("criterion", "steps"), [("depth", 4), ("width", 12)])
def test_sharded_processes_decide_as_one_process(found, tmp_path, criterion, steps):
    """
    Rounding may turn the sign of an eigenvector, which makes another unit, or exchanges the copies of a neuron:
    the first event, and losses as long as both are the same.
    """
    one = alone(tmp_path, growth(layers=None, criterion=criterion))
    run = found[criterion]
    assert run["losses"][:steps] == pytest.approx(losses(one)[:steps], rel=1e-6)
    ours, theirs = run["events"][0], events(one)[0]
    assert ours["shapes"] == theirs["shapes"] and ours["candidates"] == theirs["candidates"]
    assert [layer["neurons"] for layer in ours["layers"]] == [layer["neurons"] for layer in theirs["layers"]]
    assert ours["loss_after"] == pytest.approx(theirs["loss_after"], rel=1e-9)


def test_what_two_processes_saved_grows_on_four_as_on_two(found):
    """Directions of units have a sign that rounding may turn, so that only the decisions are compared."""
    four, two = found["four_grown"], found["shards"]
    assert four["losses"][:7] == pytest.approx(two["losses"][:7], rel=1e-6)
    for ours, theirs in zip(four["events"], two["events"], strict=True):
        assert ours["shapes"] == theirs["shapes"] and ours["candidates"] == theirs["candidates"]
        assert [layer["neurons"] for layer in ours["layers"]] == [layer["neurons"] for layer in theirs["layers"]]
        assert ours["loss_after"] == pytest.approx(theirs["loss_after"], rel=1e-9)


@pytest.mark.parametrize("kind", ["full", "shards"])
@pytest.mark.parametrize("step", [4, 8])
def test_a_checkpoint_resumes_exactly_on_as_many_processes(found, kind, step):
    assert found[kind][f"resumed_{step}"] == {"distance": 0.0, "losses": True, "events": True}


def test_what_is_saved_is_a_model_of_its_own_class(folder):
    model = AutoModelForImageClassification.from_pretrained(folder / "saved", dtype=torch.float64)
    weights, _ = torch.load(folder / "saved.pt")
    assert furthest(model.state_dict(), weights) == 0.0
    assert len(GrowthHistory.from_model(model)) == 3
    assert model.config.auto_map["AutoModelForImageClassification"].endswith(".SaddleViTForImageClassification")


def test_no_process_holds_more_than_a_block_with_its_state(found):
    """Of six layers that all grow; bytes of all tensors beyond those before the growth."""
    memory = found["memory"]
    assert memory["layers"] == 6
    # Weights and two averages of AdamW: whole before and after the growth of a block, and new shards of all blocks.
    state = 3 * memory["block"]
    assert state / 2 < memory["most"] <= 2 * state + 3 * memory["all"] / 2 < 3 * memory["all"]


def test_a_language_model_with_tied_embeddings(folder, found, tmp_path):
    fields = {"train_dataset": Sentences(), "data_collator": None}
    assert_equal(found["llama"], torch.load(folder / "llama.pt"), alone(tmp_path, model=llama_model(), **fields))


REMEDIES = {
    "fsdp_activation_checkpointing": "that of the TrainingArguments",
    "cpu_ram_efficient_loading": "Set it to False",
    "line_search": "line_search=False",
    "best": "load_best_model_at_end",
    "batch_size": "auto_find_batch_size",
    "optimizer": "like AdamW",
    "probe": "a multiple of the 2 processes",
    "plain": "GrowthTrainer",
}


@pytest.mark.parametrize(("case", "remedy"), REMEDIES.items())
def test_what_is_refused_before_the_first_step(found, case, remedy):
    message, step = found["refused"][case]
    assert remedy in message and step == 0


def test_a_job_goes_on_after_a_process_was_killed_while_it_saved(tmp_path):
    script = ("fsdp_trainer_worker.py", str(tmp_path), "killed")
    run = launch(*script, restarts=1, timeout=280)
    assert run.returncode == 0, run.stderr[-5000:]
    found = json.loads((tmp_path / "killed_0.json").read_text())
    assert found["restarts"] == "1" and found["from"].endswith("checkpoint-4")
    assert_equal(found, torch.load(tmp_path / "killed.pt"), alone(tmp_path / "alone"))


def test_growth_under_mixed_precision_resumes_exactly(found):
    run = found["mixed"]
    assert run["dtype"] == "torch.float32" and run["distance"] == 0.0
    assert all(event["layers"] for event in run["events"])
