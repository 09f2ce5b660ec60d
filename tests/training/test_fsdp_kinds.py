"""Heads and blocks of sharded models: two processes grow as one process does. See `fsdp_kinds_worker.py`."""

import json

import pytest
from training_cases import launch


pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

CHECKS = ("by_hand", "any", "failing", "refused")
SLOW_CHECKS = ("heads", "blocks", "t5", "swin", "llama")
EXPECTED = {
    "by_hand": {"block_average", "block_copy", "block_identity", "block_stack", "new_head", "split", "split_head"},
    "any": {"new_head", "split_head", "block_copy", "split"},
    "heads": {"new_head", "split_head"},
    "blocks": {"block_copy"},
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


def assert_one(run, expected):
    sharded, one = run["sharded"], run["one"]
    for what in ("losses", "gains"):
        assert sharded.pop(what) == pytest.approx(one.pop(what), rel=1e-9)
    assert sharded == one
    assert run["weights"] < 1e-9 and run["states"] < 1e-9
    assert {name for event in sharded["events"] for name in event["operators"]} >= expected


@pytest.mark.parametrize("check", ["by_hand", "any"])
def test_two_sharded_processes_are_one_process(found, check):
    assert_one(found[check][0], EXPECTED[check])
