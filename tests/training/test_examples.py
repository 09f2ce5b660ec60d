"""The hand-written loop with Accelerate runs, grows, and saves what can be loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from read_guard import with_guard
from safetensors.torch import load_file

from hf_saddle.growth import GrowthHistory
from hf_saddle.models import SaddleViTForImageClassification


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "processes", [1, pytest.param(2, marks=[pytest.mark.distributed, pytest.mark.slow])], ids=["one", "two"]
)
def test_the_loop_with_accelerate(tmp_path, processes):
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    script = [
        str(ROOT / "examples" / "accelerate_loop.py"),
        "--epochs",
        "4",
        "--use_cpu",
        "--output_dir",
        str(tmp_path),
    ]
    environment = os.environ | {"PYTHONPATH": with_guard(ROOT), "OMP_NUM_THREADS": "1"}

    def launch(*options):
        command = [sys.executable, *launcher, *script, *options]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert run.returncode == 0, run.stderr[-2000:]
        assert "epoch 4: accuracy" in run.stdout
        return load_file(tmp_path / "model.safetensors")

    # 22 steps an epoch: the state of step 50 is in the third, after one of two events.
    whole = launch()
    resumed = launch("--resume")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    model = SaddleViTForImageClassification.from_pretrained(tmp_path)
    history = GrowthHistory.from_model(model)
    history.check(model)
    assert [event.epoch for event in history.events] == [1, 3]
    assert all(event.neurons > 0 for event in history.events)


@pytest.mark.parametrize(
    ("name", "processes"),
    [("two_gpus", 2), ("two_machines", 16), ("fsdp_one_gpu", 1), ("fsdp_four_gpus", 4), ("fsdp_eight_gpus", 8)]
    + [("fsdp_two_machines", 16)],
)
def test_launch_configs_are_read_by_accelerate(name, processes):
    """An unknown key would be an error."""
    sharded = name.startswith("fsdp")
    config = load_config_from_file(str(ROOT / "examples" / "launch_configs" / f"{name}.yaml"))
    assert config.num_processes == processes
    assert config.distributed_type == (DistributedType.FSDP if sharded else DistributedType.MULTI_GPU)
    assert not sharded or config.fsdp_config["fsdp_version"] == 2
