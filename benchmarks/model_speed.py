"""
Time of a forward and backward pass: an ungrown model against stock, grown models against uniform ones of equal MACs.

Both models of a pair are timed in turn, in an order that alternates, by the time that the process spends on the CPU:
other processes disturb it little, and both models alike. The ratio of the minima is the figure to read; the median of
the ratios of neighbouring passes shows how sure it is.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import hf_saddle
from hf_saddle import SaddleViTConfig, SaddleViTForImageClassification


UNITS = 60
HIDDEN, WIDTH = 384, 768
STOCK_AIM, GROWN_AIM = 1.02, 1.05
FAN_IN = {
    "mlp.fc1": HIDDEN,
    "mlp.fc2": WIDTH,
    "attention.q_proj": HIDDEN,
    "attention.k_proj": HIDDEN,
    "attention.v_proj": HIDDEN,
    "attention.o_proj": 192,
}


def saddle(**fields) -> SaddleViTForImageClassification:
    """The reduced DeiT-S at 100 classes, with some fields changed."""
    config = SaddleViTConfig.reduced_deit_small(num_labels=100)
    for field, value in fields.items():
        setattr(config, field, value)
    return SaddleViTForImageClassification(config)


def stock() -> ViTForImageClassification:
    """The same shapes in transformers' own class."""
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=HIDDEN, num_attention_heads=6, head_dim=32, intermediate_size=WIDTH, layer_norm_eps=1e-6,
            num_labels=100,
        )
    )  # fmt: skip


def with_branches(skip_sizes: dict[str, list[int]], unit: str = "gain") -> tuple[nn.Module, nn.Module]:
    """A model with these branches in each layer, and the uniform one whose wider MLP has as many MACs."""
    grown = saddle(skip_sizes=skip_sizes, skip_unit=unit)
    with torch.no_grad():
        for linear in (site.module for site in grown.growable_linears()):
            if linear.skip is not None and linear.skip.gain is not None:
                linear.skip.gain.fill_(0.1)
    rows = sum(sum(widths) * FAN_IN[linear] for linear, widths in skip_sizes.items())
    return grown, saddle(intermediate_size=WIDTH + rows // (2 * HIDDEN))


def with_widths(widths: list[int]) -> tuple[nn.Module, nn.Module]:
    """A model whose layers have these widths, and the uniform one of their mean."""
    per_layer_config = {layer: {"intermediate_size": width} for layer, width in enumerate(widths)}
    return saddle(per_layer_config=per_layer_config), saddle(intermediate_size=sum(widths) // len(widths))


def macs(model: nn.Module) -> int:
    """Multiply-accumulates per token in all linears."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def seconds(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """CPU time of one forward and backward pass."""
    model.zero_grad()
    start = time.process_time()
    model(pixel_values=pixels, labels=labels).loss.backward()
    return time.process_time() - start


def compare(model: nn.Module, reference: nn.Module, batch: tuple[Tensor, Tensor], repeats: int) -> dict[str, float]:
    """Times of both models and their ratios."""
    assert macs(model) == macs(reference), (macs(model), macs(reference))
    pair = (model.train(), reference.train())
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 2):
        for index in (0, 1) if repeat % 2 else (1, 0):
            elapsed = seconds(pair[index], *batch)
            if repeat >= 2:  # the first passes warm up
                times[index].append(elapsed)
    return {
        "seconds": min(times[0]),
        "reference_seconds": min(times[1]),
        "median_seconds": statistics.median(times[0]),
        "reference_median_seconds": statistics.median(times[1]),
        "ratio_of_minima": min(times[0]) / min(times[1]),
        "median_of_ratios": statistics.median(a / b for a, b in zip(*times, strict=True)),
        "macs_per_token": macs(model),
    }


CASES = {
    "ungrown : stock": (lambda: (saddle(), stock()), STOCK_AIM),
    "widths 640-1024 : uniform": (lambda: with_widths([640, 1024] * 6), GROWN_AIM),
    **{
        f"{UNITS} units on {linear.split('.')[1]} : uniform": (
            lambda linear=linear: with_branches({linear: [UNITS]}),
            GROWN_AIM,
        )
        for linear in FAN_IN
    },
    "shared targets on v_proj : uniform": (lambda: with_branches({"attention.v_proj": [256]}), GROWN_AIM),
    "nested 60, 30 on fc1 : uniform": (lambda: with_branches({"mlp.fc1": [60, 30]}), GROWN_AIM),
    "60 pairs on fc1 : uniform": (lambda: with_branches({"mlp.fc1": [UNITS]}, "residual_pair"), GROWN_AIM),
    "60 units on all six : uniform": (lambda: with_branches({linear: [UNITS] for linear in FAN_IN}), GROWN_AIM),
}


def cpu_name() -> str:
    """The model of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12, help="timed passes of each model")
    parser.add_argument("--batch", type=int, default=1, help="images of 224x224 per pass")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "model_speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    batch = (torch.randn(arguments.batch, 3, 224, 224), torch.randint(100, (arguments.batch,)))
    results = {}
    table = Table("model : reference", "ms", "reference ms", "ratio of minima", "median of ratios", "aim")
    for name, (make, aim) in CASES.items():
        if arguments.only in name:
            row = results[name] = {**compare(*make(), batch, arguments.repeats), "aim": aim}
            table.add_row(
                name, f"{1000 * row['seconds']:.1f}", f"{1000 * row['reference_seconds']:.1f}",
                f"{row['ratio_of_minima']:.3f}", f"{row['median_of_ratios']:.3f}", f"≤ {aim}",
            )  # fmt: skip
    Console(width=119).print(table)
    record = {
        "what": "forward and backward pass, reduced DeiT-S at 100 classes, float32, sdpa",
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("output", "only")},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "platform": platform.platform(terse=True)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "hf_saddle": hf_saddle.__version__,
        },
        "results": results,
    }
    if not arguments.only:
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
