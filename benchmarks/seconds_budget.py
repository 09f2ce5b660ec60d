"""How well a budget of seconds is kept: the step that was asked for, that the event expects, and that is measured.

    python benchmarks/seconds_budget.py --output benchmarks/results/seconds_budget.json

A small ViT and a Llama-like model are trained for a while and grow in one event, by units, heads, blocks or
all of them, with `budget_unit="seconds"`. Forward and backward passes of the model before and after alternate, and the
fastest of each counts. An event may add less than it is allowed where no further candidate fits, or none pays.
"""

import argparse
import copy
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from sklearn.datasets import load_digits
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

import hf_saddle
from hf_saddle import GrowthConfig
from hf_saddle.training import growth_event_


OPERATORS: dict[str, Any] = {
    "units": "zero_gain",
    "heads": ["new_head", "split_head"],
    "blocks": "block_copy",
    "any": "any",
}


def vit() -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """A ViT of four blocks, 96 wide, with digits."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    config = ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes)
    batches = [{"pixel_values": images[i : i + 64], "labels": labels[i : i + 64]} for i in range(0, 1536, 64)]
    return ViTForImageClassification(config), batches


def llama() -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """A Llama of four blocks, 96 wide, with sequences of 64 tokens, each of which follows from the one before it."""
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    config = LlamaConfig(vocab_size=256, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    generator = torch.Generator().manual_seed(0)
    follows, tokens = torch.randint(256, (256, 4), generator=generator), torch.randint(256, (384, 1))
    while tokens.shape[1] < 64:
        chosen = torch.randint(4, (384, 1), generator=generator)
        tokens = torch.cat([tokens, follows[tokens[:, -1:]].gather(2, chosen[..., None])[..., 0]], 1)
    return LlamaForCausalLM(config), [{"input_ids": part, "labels": part} for part in tokens.split(16)]


def trained(make: Any, steps: int) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """A model that has begun to learn, and batches."""
    torch.manual_seed(0)
    stock, batches = make()
    model = hf_saddle.growable(stock)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        model(**batches[step % len(batches)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, batches


def seconds(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """Of a forward and backward pass."""
    started = time.perf_counter()
    torch.autograd.grad(model(**batch).loss, list(model.parameters()), allow_unused=True)
    return time.perf_counter() - started


def measured(before: Any, after: Any, batch: dict[str, torch.Tensor], rounds: int) -> float:
    """How many times as long a step takes."""
    pairs = [(seconds(before, batch), seconds(after, batch)) for _ in range(rounds)]
    return min(pair[1] for pair in pairs) / min(pair[0] for pair in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asked", type=float, default=1.2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, make in {"ViT": vit, "Llama": llama}.items():
        model, batches = trained(make, options.steps)
        for kind, operator in OPERATORS.items():
            config = GrowthConfig(operator=operator, budget_unit="seconds", max_growth=options.asked, at=[0.5])
            grown = copy.deepcopy(model)
            started = time.perf_counter()
            event = growth_event_(grown, None, batches[:8], config)
            took = time.perf_counter() - started
            expected = 1 + event.timing.added / event.timing.step if event.timing else 1.0
            row = {
                "model": name,
                "kind": kind,
                "asked": options.asked,
                "expected": expected,
                "measured": measured(model, grown, batches[0], options.rounds),
                "parameters": event.parameters_after / event.parameters_before,
                "macs": event.macs_after / event.macs_before,
                "event_seconds": took,
                "held_back": event.held_back,
            }
            rows.append(row)
            figures = ", ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
            print(f"{name}, {kind}: {figures}{', ' + event.held_back if event.held_back else ''}", flush=True)
    if options.output:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": 1, "torch": torch.__version__}
        known = machine | {"transformers": transformers.__version__}
        options.output.write_text(json.dumps({"about": known, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
