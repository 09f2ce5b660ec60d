"""A small file takes little memory and little time, whatever its config asks for."""

import json
import subprocess
import sys

import pytest
import torch
from fuzz_cases import make_folder

from hf_saddle import SaddleViTConfig, SaddleViTForImageClassification
from hf_saddle.models.checkpoint_checks import check_values


# Beyond the file; a config of 2**18 labels, the largest number, takes most of it for their names.
CONSTANT = 256 * 2**20
ASKED = {
    "hidden_size": {"hidden_size": 4096, "num_attention_heads": 4096},
    "layers": {"num_hidden_layers": 4096, "per_layer_config": None},
    "width": {"intermediate_size": 2**18},
    "width of a layer": {"per_layer_config": {"0": {"intermediate_size": 2**18}}},
    "branch": {"per_layer_config": {"1": {"skip_sizes": {"mlp.fc1": [2**18, 2**10]}}}},
    "labels": {"num_labels": 2**18, "id2label": None, "label2id": None},
    "image": {"image_size": 2**12, "patch_size": 1},
    "channels": {"num_channels": 2**18},
    "head": {"head_dim": 2**18},
    "dtype": {"dtype": "float64", "hidden_size": 2**12},
}
LOAD = """
import json, sys, time
import hf_saddle
from transformers import AutoModelForImageClassification

def load(folder):
    try:
        model = AutoModelForImageClassification.from_pretrained(folder)
        return sum(parameter.numel() for parameter in model.parameters())
    except ValueError as error:
        return str(error)

def memory(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(lines[name].split()[0])

load(sys.argv[1])
for folder in sys.argv[2:]:
    # The peak of this process from here on; `getrusage` would tell that of the process that started this one, too.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, started = memory("VmRSS"), time.process_time()
    result = load(folder)
    seconds = time.process_time() - started
    print(json.dumps([result, memory("VmHWM") - before, seconds]))
"""


def loaded(*folders) -> list[tuple[object, int, float]]:
    """Of each folder but the first: parameters or error, further peak memory in bytes, seconds of the processor."""
    command = [sys.executable, "-c", LOAD, *map(str, folders)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_what_a_config_asks_for_is_not_taken(tmp_path):
    make_folder(tmp_path / "whole", sharded=False)
    for name, fields in ASKED.items():
        make_folder(tmp_path / name, sharded=False)
        config = json.loads((tmp_path / name / "config.json").read_text()) | fields
        (tmp_path / name / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    for name, (error, memory, seconds) in zip(
        ASKED, loaded(tmp_path / "whole", *(tmp_path / name for name in ASKED)), strict=True
    ):
        assert isinstance(error, str) and str(tmp_path / name) in error, (name, error)
        assert memory < CONSTANT and seconds < 10, (name, memory, seconds)


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_whole_model_takes_at_most_twice_its_file(sharded, tmp_path):
    config = SaddleViTConfig(
        hidden_size=512, num_hidden_layers=20, intermediate_size=2048, image_size=32, patch_size=8
    )
    model = SaddleViTForImageClassification(config)
    model.save_pretrained(tmp_path / "large", max_shard_size="20MB" if sharded else "1GB")
    make_folder(tmp_path / "whole", sharded=False)
    size = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors"))
    ((parameters, memory, _),) = loaded(tmp_path / "whole", tmp_path / "large")
    assert parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size > 200 * 2**20 and size / 2 < memory < 2 * size + 2**25


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_found(value, dtype):
    tensor = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    check_values({"weight": tensor}, "file")
    tensor[1, 2] = value
    with pytest.raises(ValueError, match="`weight` in file has values that are not finite"):
        check_values({"weight": tensor}, "file")
