"""How far one has to read to follow the data: the walks of docs/architecture.md in frames, functions and files.

    python benchmarks/walks.py

A frame is a function of the library on the stack where the walk ends. Functions are read in the order of their first
calls, which may lead from file to file. Comprehensions are not counted.
"""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
import transformers

import hf_saddle
from hf_saddle import GrowthConfig, SaddleDeiTConfig, SaddleDeiTForImageClassification, growth_event_
from hf_saddle.growth import GrowthPlan, LayerGrowth, grow_


PACKAGE = str(Path(hf_saddle.__file__).parent)
SHAPE = {"image_size": 8, "patch_size": 2, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def of_library(frame: FrameType | None) -> bool:
    """Whether a frame is that of a function of the library that has a name."""
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE) and frame.f_code.co_name[0] != "<"


def walk(run: Callable[[], Any], end: str = "") -> dict[str, int]:
    """What `run` goes through in the library until the last call of `end` is over, by default all of it."""
    functions: dict[tuple[str, str], None] = {}  # in the order of their first calls
    found = {"frames": 0, "files on the stack": 0}
    ended = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal ended
        if event not in ("call", "return") or not of_library(frame):
            return
        code, stack, above = frame.f_code, [], frame
        if event == "return":
            ended = len(functions) if code.co_name == end else ended
            return
        functions.setdefault((code.co_filename, code.co_qualname))
        while above is not None:
            stack += [above.f_code.co_filename] if of_library(above) else []
            above = above.f_back
        if (not end or code.co_name == end) and len(stack) > found["frames"]:
            found["frames"], found["files on the stack"] = len(stack), len(set(stack))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    files = [file for file, _ in functions][: ended or None]
    found["functions"], found["files"] = len(files), len(set(files))
    found["changes of file"] = sum(one != other for one, other in pairwise(files))
    return found


def model_and_batches() -> tuple[Any, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    model = SaddleDeiTForImageClassification(SaddleDeiTConfig(**SHAPE, intermediate_size=16, num_labels=10))
    batch = {"pixel_values": torch.randn(32, 3, 8, 8), "labels": torch.randint(10, (32,))}
    return model, [batch, batch]


def main() -> None:
    transformers.logging.set_verbosity_error()
    model, batches = model_and_batches()
    optimizer = torch.optim.AdamW(model.parameters())
    config = GrowthConfig(significance=0.0, max_growth=2.0)
    walks = {"event → eigensolver": walk(lambda: growth_event_(model, optimizer, batches, config), "lanczos")}
    model, _ = model_and_batches()
    plan = GrowthPlan((LayerGrowth.by_hand(model, "deit.layers.0.mlp.fc1", "zero_gain", [0, 1]),))
    walks["plan → parameters"] = walk(lambda: grow_(model, plan, torch.optim.AdamW(model.parameters())), "install_")
    with TemporaryDirectory() as folder:
        walks["modules → file"] = walk(lambda: model.save_pretrained(folder))
        walks["file → modules"] = walk(lambda: type(model).from_pretrained(folder))
    for name, found in walks.items():
        print(f"{name}: {', '.join(f'{number} {what}' for what, number in found.items())}")


if __name__ == "__main__":
    main()
