"""FSDP2: two sharded processes train and grow as one process does. The runs are in `fsdp_worker.py`."""

import json

import pytest
from training_cases import launch


pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    run = launch("fsdp_worker.py", str(folder))
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"found_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_sharded_training_with_growth_equals_that_of_one_process(found, optimizer):
    for rank in found:
        run = rank[optimizer]
        assert run["sharded"] == pytest.approx(run["one"], rel=1e-10)
        sharded, one = run["neurons"]
        assert sharded == one and all(sharded)
        assert run["weights"] < 1e-9 and run["states"] < 1e-9
        assert run["shapes"] and run["groups"] and run["rates"]


def test_an_empty_plan_is_recorded_and_keeps_the_model(found):
    assert all(rank["empty"] == {"neurons": [0, 0], "events": 2} for rank in found)


def test_a_growth_whose_loss_is_not_finite_is_undone(found):
    for rank in found:
        assert "which was undone" in rank["undone"].pop("message")
        assert rank["undone"] == {"same": True, "history": None, "distance": 0.0}


def test_growing_a_sharded_model_in_place_is_refused(found):
    assert all("growth_event_sharded_" in rank["in_place"] for rank in found)
