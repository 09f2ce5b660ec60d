"""Several processes do what one does; what they cannot do they refuse. The checks run in `ddp_worker.py`."""

import json

import pytest
import torch
from loss_cases import DISTRIBUTED
from test_loop_checkpoints import Loop
from torch.utils.data import DataLoader, WeightedRandomSampler
from training_cases import Images, events, growth, launch, train

from hf_saddle.growth import GrowthHistory
from hf_saddle.training import probe_batches, training_indices


pytestmark = pytest.mark.distributed


def found_by_ranks(folder, *checks: str, processes: int = 2) -> list[dict]:
    run = launch("ddp_worker.py", str(folder), *checks, processes=processes)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"found_{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both ranks found in one launch."""
    return found_by_ranks(
        tmp_path_factory.mktemp("ddp"),
        "gradients_after_growth",
        "empty_plans",
        "refusals",
        "losses_and_samples",
        "heads",
    )


@pytest.mark.parametrize("way", ["plain", "unused", "views", "static", "small_buckets", "no_sync", "comm_hook"])
def test_gradients_after_growth_are_those_of_one_process_on_all_batches(found, way):
    for rank in found:
        assert rank["gradients_after_growth"][way]["difference"] < 1e-13
        assert rank["gradients_after_growth"][way]["replicas_equal"]
        # Two processes with half of the probe samples each decide as one does with all of them.
        assert rank["gradients_after_growth"][way]["same_decisions"]


def test_heads_grow_by_the_plan_of_the_first_process_as_on_one(found):
    for rank in found:
        assert rank["heads"]["difference"] < 1e-9 and rank["heads"]["replicas_equal"]
        assert list(rank["heads"]["heads"]) == ["layers.1.attention"]


def test_a_run_whose_plans_are_empty_has_the_losses_of_a_run_without_the_callback(found):
    for rank in found:
        assert rank["empty_plans"]["with"] == rank["empty_plans"]["without"]


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_the_probe_s_loss_is_the_logged_one(found, name):
    for rank in found:
        logged, probed = rank["losses_and_samples"]["losses"][name]
        assert probed == pytest.approx(logged, rel=2e-6)


@pytest.mark.parametrize("trainer", ["own_optimizer", "plain"])
def test_an_own_optimizer_and_a_plain_trainer_follow(found, trainer):
    for rank in found:
        assert rank["losses_and_samples"][trainer] == {"events": 3, "replicas_equal": True}


def test_all_ranks_draw_from_what_the_first_one_s_sampler_draws(found):
    """The shares of the last event's draw of 32 samples, made by hand."""
    config = growth()
    ranks = [rank["losses_and_samples"]["sampler"] for rank in found]
    assert [rank["events"] for rank in ranks] == [3, 3]
    loader = DataLoader(Images(), batch_size=8, sampler=WeightedRandomSampler([1.0] * 8 + [0.0] * 56, 64))
    indices = training_indices(loader, config, event=2)
    batches = probe_batches(Images(), config, event=2, indices=indices)
    drawn = torch.cat([batch["pixel_values"] for batch in batches])
    expected = [int((Images().pixels == image).flatten(1).all(dim=1).nonzero()) for image in drawn]
    # A rank looks at the half that chooses first.
    shares = sorted(expected[:16]), sorted(expected[16:])
    assert tuple(sorted(rank["probed"]) for rank in ranks) == shares


def test_a_plain_trainer_that_the_callback_does_not_know_is_refused(found):
    assert all("Use GrowthTrainer" in rank["refusals"]["plain_trainer"] for rank in found)


def test_processes_that_would_train_a_model_each_are_refused(found):
    assert all("`use_cpu=True`" in rank["refusals"]["apart"] for rank in found)


def test_a_model_without_its_wrapper_is_warned_of(found):
    for rank in found:
        (line,) = rank["refusals"]["unwrapped"]
        assert "`Accelerator(cpu=True)`" in line


def test_replicas_that_drifted_apart_are_refused(found):
    assert all("Ranks [1] differ from rank 0" in rank["refusals"]["drift"] for rank in found)


def test_if_one_rank_draws_no_samples_all_stop(found):
    first, second = (rank["refusals"]["no_samples_on_one_rank"] for rank in found)
    assert first.startswith("RuntimeError: Drawing the probe samples failed on rank 1")
    assert second == "OSError: the disk of rank 1 is gone"


def test_if_one_rank_cannot_grow_none_does(found):
    first, second = (rank["refusals"] for rank in found)
    assert first["one_rank_fails"].startswith("RuntimeError: The growth failed on rank 1")
    assert second["one_rank_fails"].startswith("MemoryError: no memory left")
    assert first["one_loss_is_nan"].startswith("RuntimeError: Measuring the grown model failed on rank 1")
    assert second["one_loss_is_nan"].startswith("ValueError: The loss of the probe set is nan after the growth")
    assert first["unchanged"] and second["unchanged"]


@pytest.mark.slow
def test_going_back_to_weights_of_other_shapes(tmp_path):
    for rank in (found["shapes_from_outside"] for found in found_by_ranks(tmp_path, "shapes_from_outside")):
        assert "DDP wrapper was made for other parameters" in rank["not_told"]
        assert "in its DDP wrapper" in rank["unwrapped"]
        assert rank["difference"] < 1e-13
        assert rank["at_rest"] == [] and rank["events"] == [3] and rank["replicas_equal"]
        assert rank["resumed"] and rank["further"] and rank["loop_replicas_equal"]
    # One process goes on from what two have saved.
    loop = Loop()
    loop.accelerator.load_state(str(tmp_path / "shapes_from_outside" / "loop" / "4"))
    loop.run(start=4)
    GrowthHistory.from_model(loop.model).check(loop.model)
    assert len(loop.losses) == 8


@pytest.mark.slow
def test_a_follower_that_cannot_grow_on_one_rank_holds_up_all(tmp_path):
    first, second = (found["followers"] for found in found_by_ranks(tmp_path, "followers"))
    assert first["refused"].startswith("RuntimeError: The growth failed on rank 1")
    assert "not finite after the growth" in second["refused"]
    for rank in (first, second):
        assert rank["unchanged"] and rank["same_shapes"] and rank["replicas_equal"]


@pytest.mark.slow
def test_three_processes_with_uneven_shares_do_what_one_does(tmp_path):
    found = [rank["uneven_shares"] for rank in found_by_ranks(tmp_path, "uneven_shares", processes=3)]
    assert [rank["share"] for rank in found] == [10, 11, 11]
    for rank in found:
        assert rank["same_decisions"] and rank["difference"] < 1e-13
        assert rank["events"] == 3 and rank["replicas_equal"]


@pytest.mark.slow
def test_runs_of_two_processes_resume_exactly_and_change_their_number(tmp_path):
    one = train(tmp_path / "one", growth(), save_strategy="steps", save_steps=1, per_device_train_batch_size=16)
    ranks = found_by_ranks(tmp_path, "trainer_runs", "resume_from_one")
    found = ranks[0]["trainer_runs"]
    assert found["replicas_equal"] and found["events"] == ranks[1]["trainer_runs"]["events"]
    assert found["resumed"] == {"2": True, "3": True, "7": True}
    # From one process to two: the history up to the checkpoint is the same, and the training goes on.
    for rank in ranks:
        assert rank["resume_from_one"]["replicas_equal"]
        assert rank["resume_from_one"]["events"][:2] == events(one)[:2]
        assert len(rank["resume_from_one"]["events"]) == 3
    # And back.
    back = train(tmp_path / "back", growth(), str(tmp_path / "trainer_runs" / "full" / "checkpoint-7"))
    assert events(back)[:2] == found["events"][:2] and len(events(back)) == 3


@pytest.mark.slow
def test_modes_keep_the_replicas_equal(tmp_path):
    for rank in found_by_ranks(tmp_path, "modes"):
        for name, mode in rank["modes"].items():
            assert mode == {"replicas_equal": True, "events": 3}, name


@pytest.mark.slow
def test_a_second_training_after_the_best_and_smaller_model_was_loaded(tmp_path):
    for rank in found_by_ranks(tmp_path, "second_training"):
        found = rank["second_training"]
        assert found["best_step"] == 2 and found["events_of_best"] == 0
        assert found["events_of_second"] == 3 and found["replicas_equal"]
        assert len(found["losses"]) == 12
