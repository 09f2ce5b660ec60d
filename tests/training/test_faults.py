"""A rank that fails or hangs ends all of them; a killed job resumes."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_cases import launch


pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "the disk of rank 1 is gone"),
        ("hangs", "In growth event 0 on rank 0 of 2"),
        # Whichever comes first: the launcher sees the end of rank 1, or rank 0 loses the connection to it.
        ("killed", r"Signal 9 \(SIGKILL\)|In growth event 0 on rank 0 of 2"),
    ],
)
def test_a_rank_that_fails_hangs_or_is_killed_ends_all_ranks(tmp_path, fault, message):
    started = time.monotonic()
    run = launch("fault_worker.py", fault, str(tmp_path), timeout=120)
    assert run.returncode != 0 and re.search(message, run.stderr)
    assert time.monotonic() - started < 100  # the timeout of the process group is 8 s, the rest is starting up
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(900)
def test_killed_jobs_resume_and_lose_nothing(tmp_path):
    output = tmp_path / "faults.json"
    script = str(ROOT / "benchmarks" / "training_faults.py")
    subprocess.run([sys.executable, script, "--trials", "6", "--output", str(output)], check=True, timeout=880)
    found = json.loads(output.read_text())
    assert found["wrong_checkpoints"] == found["wrong_runs"] == found["failed_resumes"] == 0
