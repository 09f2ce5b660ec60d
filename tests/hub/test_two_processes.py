"""Two processes train one model with DDP; one of them pushes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_client as actions
import pytest
from read_guard import with_guard


pytestmark = [pytest.mark.hub, pytest.mark.distributed, pytest.mark.slow]

WORKER = Path(__file__).with_name("push_worker.py")


def test_two_processes_push_once(hub, client, folder, tmp_path, pixels):
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_write", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    paths = with_guard(WORKER.parents[2], WORKER.parent)
    environment = os.environ | settings | {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(WORKER), str(folder), "tester/two"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr[-3000:]
    repo = hub.repos["tester/two"]
    assert repo.titles == [
        "initial commit",
        *(f"Training in progress, step {step}" for step in (2, 4, 6)),
        "End of training",
    ]
    assert json.loads(repo.files()["training_record.json"])["processes"] == 2
    assert len(client(actions.logits, "tester/two", pixels)[1]["events"]) == 1
