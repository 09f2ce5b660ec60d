"""FSDP2: two sharded processes train and grow as one process does. The runs are in `fsdp_worker.py`."""

import json

import pytest
from training_cases import launch


pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    run = launch("fsdp_worker.py", str(folder))
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"found_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("config", "operators"), [("moving", ["split", "zero_gain"]), ("at_rest", ["zero_gain"])])
def test_sharded_training_with_growth_equals_that_of_one_process(found, config, operators):
    run = found[0][config]
    assert run["sharded"] == pytest.approx(run["one"], rel=1e-10)
    sharded, one = run["neurons"]
    assert sharded == one and all(sharded)
    assert run["operators"] == operators
    sharded, one = run["gains"]
    assert sharded == pytest.approx(one, rel=1e-9) and any(one)
    assert run["weights"] < 1e-9 and run["states"] < 1e-9
    assert run["shapes"] and run["groups"] and run["rates"]


def test_an_empty_plan_is_recorded_and_keeps_the_model(found):
    assert all(rank["empty"] == {"neurons": [0, 0], "events": 2} for rank in found)


@pytest.mark.parametrize(("when", "message"), [("trial", "no loss"), ("growth", "which was undone")])
def test_what_fails_on_the_grown_model_is_undone(found, when, message):
    for rank in found:
        assert message in rank["undone"][when].pop("message")
        assert rank["undone"][when] == {"same": True, "history": None, "distance": 0.0}
