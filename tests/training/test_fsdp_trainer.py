"""A GrowthTrainer under FSDP2 on two and four processes is one process. The runs are in `fsdp_trainer_worker.py`."""

import json
from types import SimpleNamespace

import pytest
import torch
from fsdp_cases import CONFIG, FREEZING, KINDS, OWN_FIELDS, PURSUIT, Sentences, furthest, llama_model, whole
from training_cases import CHECKPOINTING, events, launch, losses, tiny, train
from transformers import AutoModelForImageClassification

from hf_saddle.growth import GrowthHistory, GrowthPlan, LayerGrowth, grow_, insert_blocks_
from hf_saddle.training.sharding.trainer_sharded import before_sharding_


pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

CHECKS = ("shards", "full", "llama", "kinds", "refused")
# By the number of processes. Those of four resume from what the first checks have saved.
SLOW_CHECKS = {2: ("options", "memory", "mixed", "mixed_kinds", "freezing"), 4: ("four_full", "four_shards")}


def run_checks(folder, *checks, processes=2):
    """What the first process found, by check."""
    run = launch("fsdp_trainer_worker.py", str(folder), *checks, processes=processes, timeout=800)
    assert run.returncode == 0, run.stderr[-5000:]
    return {name: json.loads((folder / f"{name}_0.json").read_text()) for name in checks}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def found(folder):
    return run_checks(folder, *CHECKS)


@pytest.fixture(scope="module")
def found_slowly(folder, found):
    return {
        name: value
        for processes, checks in SLOW_CHECKS.items()
        for name, value in run_checks(folder, *checks, processes=processes).items()
    }


@pytest.fixture(scope="module")
def one(folder):
    """The training of [`CONFIG`] in one process."""
    return alone(folder / "one")


def alone(folder, config=CONFIG, frozen=False, **fields):
    """The same training in one process."""
    fields = OWN_FIELDS | {"per_device_train_batch_size": 16, "model": tiny(hidden_dropout_prob=0.0).double()} | fields
    if frozen:
        fields["model"].vit.embeddings.requires_grad_(False)
    return train(folder, config, **fields)


def assert_equal(run, tensors, one):
    assert run["losses"] == pytest.approx(losses(one), rel=1e-6)  # which Trainer adds up in single precision
    assert run["rates"] == [group["lr"] for group in one.optimizer.param_groups]
    for ours, theirs in zip(run["events"], events(one), strict=True):
        assert (ours["layers"] or ours["blocks"]) and ours["shapes"] == theirs["shapes"]
        assert [layer["neurons"] for layer in ours["layers"]] == [layer["neurons"] for layer in theirs["layers"]]
        for field in ("parameters_before", "parameters_after", "macs_before", "macs_after"):
            assert ours[field] == theirs[field]
        for field in ("operators", "candidates", "frozen"):
            assert ours[field] == theirs[field]
        assert [block["after"] for block in ours["blocks"]] == [block["after"] for block in theirs["blocks"]]
        for field in ("loss_before", "loss_after", "predicted_gain"):
            assert ours[field] == pytest.approx(theirs[field], rel=1e-9)
    for ours, theirs in zip(tensors, whole(one.model, one.optimizer.optimizer), strict=True):
        assert furthest(ours, theirs) < 1e-9


@pytest.mark.parametrize("check", ["shards", "full"])
def test_sharded_processes_are_one_process(folder, found, one, check):
    assert_equal(found[check], torch.load(folder / f"{check}.pt"), one)
    operators = {name for event in found[check]["events"] for name in event["operators"]}
    assert operators == {"split", "zero_gain"}


@pytest.mark.parametrize("kind", ["shards", "full", "kinds"])
def test_a_checkpoint_resumes_exactly_on_as_many_processes(found, kind):
    assert found[kind]["resumed"] == {"distance": 0.0, "losses": True, "events": True}


def test_a_language_model_with_tied_embeddings_sharded_as_by_default(folder, found, tmp_path):
    fields = {"model": llama_model(), "train_dataset": Sentences(), "data_collator": None}
    assert_equal(found["llama"], torch.load(folder / "llama.pt"), alone(tmp_path, PURSUIT, **fields))


def test_heads_and_blocks_in_a_training(folder, found, tmp_path):
    assert_equal(found["kinds"], torch.load(folder / "kinds.pt"), alone(tmp_path, KINDS))
    operators = {name for event in found["kinds"]["events"] for name in event["operators"]}
    assert operators & {"new_head", "split_head"} and "block_copy" in operators


@pytest.mark.slow
def test_only_new_blocks_are_trained(folder, found_slowly, tmp_path):
    run = found_slowly["freezing"]
    assert_equal(run, torch.load(folder / "freezing.pt"), alone(tmp_path, FREEZING))
    assert all(event["blocks"] and event["frozen"] for event in run["events"])
    assert run["resumed"] == {"distance": 0.0, "losses": True, "events": True}


def test_what_is_saved_is_a_model_of_its_own_class(folder, found):
    model = AutoModelForImageClassification.from_pretrained(folder / "saved", dtype=torch.float64)
    weights, _ = torch.load(folder / "full.pt")
    assert furthest(model.state_dict(), weights) == 0.0
    assert len(GrowthHistory.from_model(model)) == 2
    assert model.config.auto_map["AutoModelForImageClassification"].endswith(".SaddleViTForImageClassification")


OPTIONS = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8, "max_grad_norm": 0.05}
OPTIONS |= {"frozen": True, CHECKPOINTING: True, "lr_scheduler_type": "cosine", "warmup_steps": 2}


@pytest.mark.slow
def test_options_of_a_training(folder, found_slowly, tmp_path):
    assert_equal(found_slowly["options"], torch.load(folder / "options.pt"), alone(tmp_path, PURSUIT, **OPTIONS))


@pytest.mark.slow
@pytest.mark.parametrize("check", ["four_full", "four_shards"])
def test_four_processes_go_on_from_what_two_saved(folder, found_slowly, one, check):
    assert_equal(found_slowly[check], torch.load(folder / f"{check}.pt"), one)


@pytest.mark.slow
def test_no_process_holds_more_than_a_block_with_its_state(found_slowly):
    """Of six layers that all grow; bytes of all tensors beyond those before the growth."""
    memory = found_slowly["memory"]
    assert memory["layers"] == 6
    # Weights and two averages of AdamW: whole before and after the growth of a block, and new shards of all blocks.
    state = 3 * memory["block"]
    assert state / 2 < memory["most"] <= 2 * state + 3 * memory["all"] / 2 < 3 * memory["all"]


REMEDIES = {
    "fsdp_activation_checkpointing": "that of the TrainingArguments",
    "cpu_ram_efficient_loading": "Set it to False",
    "seconds": "budget_unit='macs'",
    "best": "load_best_model_at_end",
    "batch_size": "auto_find_batch_size",
    "optimizer": "like AdamW",
    "probe": "a multiple of the 2 processes",
    "halves": "times `probe_batch_size`",
    "plain": "GrowthTrainer",
}


@pytest.mark.parametrize(("case", "remedy"), REMEDIES.items())
def test_what_is_refused_before_the_first_step(found, case, remedy):
    message, step = found["refused"][case]
    assert remedy in message and step == 0


def trainer_of(model, version=2):
    """What [`before_sharding_`] looks at."""
    asked = {"fsdp_version": version, "activation_checkpointing": False, "cpu_ram_efficient_loading": False}
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(**asked))
    return SimpleNamespace(model=model, accelerator=SimpleNamespace(state=state))


def test_fsdp1_is_refused_before_it_shards():
    """Accelerate makes it on GPUs only."""
    with pytest.raises(ValueError, match="'version': 2"):
        before_sharding_(trainer_of(tiny(), version=1), None)


def test_a_model_has_the_blocks_and_shapes_of_a_checkpoint_before_it_is_sharded(tmp_path):
    saved, model = tiny(), tiny()
    insert_blocks_(saved, after=[0])
    grow_(saved, GrowthPlan((LayerGrowth.by_hand(saved, "vit.layers.1.mlp.fc1", "zero_gain", neurons=[1, 2]),)))
    saved.save_pretrained(tmp_path)
    before_sharding_(trainer_of(model), str(tmp_path))
    assert len(model.vit.layers) == 3 and model.shapes() == saved.shapes()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in saved.named_parameters()]


@pytest.mark.slow
def test_a_job_goes_on_after_a_process_was_killed_while_it_saved(tmp_path):
    script = ("fsdp_trainer_worker.py", str(tmp_path), "killed")
    run = launch(*script, restarts=1, timeout=280)
    assert run.returncode == 0, run.stderr[-5000:]
    found = json.loads((tmp_path / "killed_0.json").read_text())
    assert found["restarts"] == "1" and found["from"].endswith("checkpoint-4")
    assert_equal(found, torch.load(tmp_path / "killed.pt"), alone(tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.parametrize("check", ["mixed", "mixed_kinds"])
def test_growth_under_mixed_precision_resumes_exactly(found_slowly, check):
    run = found_slowly[check]
    assert run["dtype"] == "torch.float32" and run["distance"] == 0.0
    assert all(event["layers"] or event["blocks"] for event in run["events"])
