"""
What skip branches cost at equal multiply-accumulates: models with branches on every linear against uniform ones.

    python -m benchmarks.branch_speed
    python -m benchmarks.branch_speed --profile

Both models of a pair take turns, in an order that alternates, on one thread; the time is what the process spends on
the CPU. The ratio of the minima is the figure to read, the quartiles of the ratios of neighbouring passes are its
spread. Memory is counted, not timed: parameters, their gradients and all that autograd keeps for the backward pass.
Targets of units are drawn, distinct where there are neurons enough.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from hf_saddle.models import SaddleLlamaForCausalLM, SaddleViTConfig, SaddleViTForImageClassification, SkipBranch

from .model_speed import FAN_IN, UNITS, cpu_name, macs, with_branches


Pair = tuple[nn.Module, nn.Module]
TOKENS = 32
# What a default run of the study grew to (benchmarks/study/results/choice.jsonl).
STUDY = {
    "layers.0.attention.q_proj": [9], "layers.0.attention.k_proj": [4], "layers.0.attention.v_proj": [17, 4],
    "layers.0.attention.o_proj": [28, 6], "layers.0.mlp.fc1": [5], "layers.0.mlp.fc2": [20, 1],
    "layers.1.attention.q_proj": [10, 1], "layers.1.attention.k_proj": [8], "layers.1.attention.v_proj": [21, 3],
    "layers.1.attention.o_proj": [26, 7], "layers.1.mlp.fc1": [4], "layers.1.mlp.fc2": [12, 1],
}  # fmt: skip


@torch.no_grad()
def draw_targets_(model: nn.Module) -> None:
    """Units on neurons drawn at random, as few on one neuron as possible, with gains that are not zero."""
    for name, branch in model.named_modules():
        if isinstance(branch, SkipBranch):
            units = branch.target.numel()
            rounds = -(-units // branch.neurons)
            branch.target.copy_(torch.cat([torch.randperm(branch.neurons) for _ in range(rounds)])[:units])
            branch.check_targets_(name)
            branch.gain.fill_(0.1)


def deit() -> Pair:
    """The reduced DeiT-S with 60 units on all six linears of every layer, and a uniform one with a wider MLP."""
    return with_branches({linear: [UNITS] for linear in FAN_IN})


def study() -> Pair:
    """A small model of the study that has grown, and a uniform one."""

    def model(**fields) -> nn.Module:
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
        images = {"image_size": 28, "num_channels": 1, "num_labels": 10}
        made = SaddleViTForImageClassification(SaddleViTConfig(**shape, **images, **fields))
        made.set_attn_implementation("eager")
        return made

    grown = model(intermediate_size=4, skip_sizes=STUDY)
    more = macs(grown) - macs(model(intermediate_size=4))
    return grown, model(intermediate_size=4 + round(more / (2 * 2 * 16)))


def llama() -> Pair:
    """A Llama with 60 units on all seven linears of its four layers, and a uniform one."""

    def model(**fields) -> nn.Module:
        shape = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 1000}
        config = SaddleLlamaForCausalLM.config_class(**shape, **fields, bos_token_id=1, eos_token_id=None)
        return SaddleLlamaForCausalLM(config)

    names = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    sizes = {f"layers.{layer}.{name}_proj": [UNITS] for layer in range(4) for name in names}
    more = UNITS * (6 * 512 + 1536)
    return model(intermediate_size=1536, skip_sizes=sizes), model(intermediate_size=1536 + more // (3 * 512))


def train_pass(batch: dict[str, Tensor]) -> Callable[[nn.Module], None]:
    """A forward and backward pass."""

    def run(model: nn.Module) -> None:
        model.zero_grad()
        model(**batch).loss.backward()

    return run


def images(number: int, channels: int, side: int, labels: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(number, channels, side, side), "labels": torch.randint(labels, (number,))}


@torch.inference_mode()
def infer(model: nn.Module) -> None:
    """One image."""
    model(pixel_values=torch.zeros(1, 3, 224, 224))


@torch.inference_mode()
def generate(model: nn.Module) -> None:
    """Tokens of one sequence, with a cache."""
    model.generate(
        input_ids=torch.ones(1, 8, dtype=torch.long), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
    )


def kept_bytes(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Parameters, their gradients, and storages that autograd keeps between the forward and the backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # alive, so that no address is given twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    del loss
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return 2 * parameters + sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def timed(pair: Pair, run: Callable[[nn.Module], None], repeats: int, inner: int) -> dict[str, float]:
    """CPU seconds of one `run` of both models, each measured over `inner` runs, and their ratios."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for index in (0, 1) if repeat % 2 else (1, 0):
            start = time.process_time()
            for _ in range(inner):
                run(pair[index])
            if repeat:  # the first ones warm up
                times[index].append((time.process_time() - start) / inner)
    quartiles = statistics.quantiles((a / b for a, b in zip(*times, strict=True)), n=4)
    return {
        "grown": min(times[0]),
        "uniform": min(times[1]),
        "ratio": min(times[0]) / min(times[1]),
        "quartiles": quartiles,
    }


def counted(pair: Pair, batch: dict[str, Tensor]) -> dict[str, float]:
    """Bytes that both models hold between forward and backward pass, and their ratio."""
    grown, uniform = (kept_bytes(model, batch) for model in pair)
    return {"grown": grown, "uniform": uniform, "ratio": grown / uniform, "quartiles": [grown / uniform] * 3}


# Aim, unit, models, training mode, passes of one measurement, and what runs; without it memory is counted.
CASES = {
    "DeiT-S, forward+backward of 1 image": (1.04, "ms", deit, 1, lambda: train_pass(images(1, 3, 224, 100))),
    "the study's model, forward+backward of 128": (1.3, "ms", study, 20, lambda: train_pass(images(128, 1, 28, 10))),
    "DeiT-S, inference of 1 image": (1.2, "ms", deit, 3, lambda: infer),
    "DeiT-S, memory kept for the backward pass": (1.1, "MB", deit, 1, None),
    f"Llama, {TOKENS} generated tokens": (1.1, "ms", llama, 1, lambda: generate),
}


def kernels(pair: Pair, run: Callable[[nn.Module], None]) -> None:
    """Print where the time of both models goes."""
    for name, model in zip(("grown", "uniform"), pair, strict=True):
        run(model)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(3):
                run(model)
        print(name)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=40))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--profile", action="store_true", help="print the kernels too")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "branch_speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results = {}
    table = Table("with branches : uniform, at equal MACs", "with", "uniform", "ratio", "quartiles", "aim")
    for name, (aim, unit, make, inner, what) in CASES.items():
        if arguments.only not in name:
            continue
        torch.manual_seed(0)
        pair = make()
        draw_targets_(pair[0])
        assert abs(macs(pair[0]) / macs(pair[1]) - 1) < 0.01, (macs(pair[0]), macs(pair[1]))
        for model in pair:
            model.train(what is None or "backward" in name)
        row = (
            counted(pair, images(1, 3, 224, 100)) if what is None
            else timed(pair, what(), arguments.repeats, inner)
        )  # fmt: skip
        results[name] = row | {"aim": aim, "unit": unit, "macs_per_token": [macs(model) for model in pair]}
        scale = {"ms": 1e3, "MB": 1e-6}[unit]
        low, _, high = row["quartiles"]
        table.add_row(
            name, f"{scale * row['grown']:.2f} {unit}", f"{scale * row['uniform']:.2f} {unit}",
            f"{row['ratio']:.3f}", f"{low:.3f}–{high:.3f}", f"≤ {aim}",
        )  # fmt: skip
        if arguments.profile and what is not None:
            kernels(pair, what())
    Console(width=119).print(table)
    record = {
        "settings": {"repeats": arguments.repeats, "threads": 1},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_average": os.getloadavg()[0]},
        "versions": {"torch": str(torch.__version__), "transformers": transformers.__version__},
        "platform": platform.platform(terse=True),
        "results": results,
    }
    if not arguments.only:
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
