"""Heads and blocks of sharded models: two processes grow as one process does. See `fsdp_kinds_worker.py`."""

import json

import pytest
from training_cases import launch


pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

CHECKS = ("by_hand", "any", "failing", "refused")
SLOW_CHECKS = ("heads", "blocks", "t5", "t5_blocks", "bert", "gpt2", "llama", "swin", "swin_blocks")
EXPECTED = {
    "by_hand": {"block_average", "block_copy", "block_identity", "block_stack", "new_head", "split", "split_head"},
    "any": {"new_head", "split_head", "block_copy"},
    "heads": {"new_head", "split_head"},
    "blocks": {"block_copy"},
    "t5": {"new_head"},
    "t5_blocks": {"block_copy"},
    "swin_blocks": {"block_copy", "block_identity"},
}


def found_by(folder, checks):
    run = launch("fsdp_kinds_worker.py", str(folder), *checks, timeout=540)
    assert run.returncode == 0, run.stderr[-5000:]
    return {name: [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in (0, 1)] for name in checks}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return found_by(tmp_path_factory.mktemp("fsdp"), CHECKS)


@pytest.fixture(scope="module")
def found_slowly(tmp_path_factory):
    return found_by(tmp_path_factory.mktemp("fsdp"), SLOW_CHECKS)


def assert_one(run, expected, rel=1e-9):
    assert "failed" not in run, run["failed"]
    sharded, one = run["sharded"], run["one"]
    # Of these plans keep single precision, of which equal figures may be rounded to neighbours.
    assert sharded.pop("shares") == pytest.approx(one.pop("shares"), rel=2**-22)
    for what in ("losses", "gains"):
        for ours, theirs in zip(sharded.pop(what), one.pop(what), strict=True):
            assert ours == pytest.approx(theirs, rel=rel)
    assert sharded == one
    assert run["weights"] < 1e-9 and run["states"] < 1e-9
    assert {name for event in sharded["events"] for name in event["operators"]} >= expected


@pytest.mark.parametrize("check", ["by_hand", "any"])
def test_two_sharded_processes_are_one_process(found, check):
    assert_one(found[check][0], EXPECTED[check])


FAILURES = {
    "kinds": ("which was undone",) * 2,
    "frozen": ("which was undone",) * 2,
    "one_rank": ("RuntimeError: Making a block failed on rank 1", "MemoryError: no memory left"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_fails_leaves_all_as_before(found, case):
    for rank, message in zip(found["failing"], FAILURES[case], strict=True):
        assert message in rank[case].pop("message")
        assert rank[case] == {"same": True, "history": None, "distance": 0.0}


REMEDIES = {
    "in_place": "growth_event_sharded_",
    "plan": "grow_by_plan_sharded_",
    "new_heads": "grow_by_plan_sharded_",
    "head_scores": "growth_event_sharded_",
    "block_scores": "growth_event_sharded_",
    "alone": "grow_by_plan_sharded_",
    "seconds": "budget_unit='macs'",
    "grouped": "counts steps by group",
    "grouped_plan": "counts steps by group",
    "parts": "not parts of them",
    "whole": "that FSDP2 has sharded",
}


@pytest.mark.parametrize(("attempt", "remedy"), REMEDIES.items())
def test_what_is_refused(found, attempt, remedy):
    for rank in found["refused"]:
        assert remedy in rank[attempt]
        assert rank["distance"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("check", SLOW_CHECKS)
def test_models_of_other_families(found_slowly, check):
    # transformers computes the loss of causal language models in single precision.
    assert_one(found_slowly[check][0], EXPECTED.get(check, set()), rel=1e-6 if check in ("gpt2", "llama") else 1e-9)
