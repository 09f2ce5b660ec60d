"""What an event takes at scale: a language model of 134 million parameters, and one of 7 billion without its weights.

    OMP_NUM_THREADS=1 python benchmarks/scale.py real
    OMP_NUM_THREADS=1 python benchmarks/scale.py simulated

`real` grows a Llama-like model on random tokens and prints what the parts of the event take in training steps of the
same number of samples, the peak memory, and whether surgery takes longer with more units. `simulated` has the shapes
of Llama 2 7B on the meta device: what is counted and priced there, and the memory that an analysis would take.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from training_overhead import timed_parts
from transformers import LlamaConfig, LlamaForCausalLM

from hf_saddle import GrowthConfig, growable
from hf_saddle.growth import GrowthPlan, LayerGrowth, count_macs, count_parameters, grow_
from hf_saddle.growth.costs import CostBook
from hf_saddle.training import growth_event_


SEVEN_BILLION = LlamaConfig()
REAL = LlamaConfig(
    vocab_size=32_000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=256,
)
SAMPLES, LENGTH = 16, 128
TOKENS = 4096  # that the analysis keeps of a linear
UNITS = (8, 32, 128)  # in every linear


def peak() -> float:
    """The largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def clocked(action: Any) -> tuple[float, Any]:
    started = time.process_time()
    result = action()
    return time.process_time() - started, result


def by_hand(model: Any, units: int) -> GrowthPlan:
    sites = [site for site in model.growable_linears() if not site.nested]
    return GrowthPlan(
        tuple(LayerGrowth.by_hand(model, site.path, "zero_gain", range(units), steps=0.1) for site in sites)
    )


def real(repeats: int) -> dict[str, Any]:
    """Events of the default settings, and surgery alone by plans of several sizes."""
    runs, surgery = [], {units: [] for units in UNITS}
    for repeat in range(repeats):
        torch.manual_seed(repeat)
        model = growable(LlamaForCausalLM(REAL)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        words = torch.randint(REAL.vocab_size, (SAMPLES, LENGTH))
        batch = {"input_ids": words, "labels": words}

        def step(model=model, optimizer=optimizer, batch=batch) -> None:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # the first is slower
        seconds, _ = clocked(step)
        trained, config = peak(), GrowthConfig(probe_samples=SAMPLES, probe_batch_size=SAMPLES, significance=0.0)
        with timed_parts() as parts:
            event, done = clocked(lambda: growth_event_(model, optimizer, [batch], config))  # noqa: B023
        runs.append(
            {
                "step_seconds": seconds,
                "event_in_steps": event / seconds,
                "parts_in_steps": {part: spent / seconds for part, spent in parts.items()},
                "peak_mib": {"training": trained, "with the event": peak()},
                "parameters": [done.parameters_before, done.parameters_after],
            }
        )
        print(json.dumps(runs[-1]), flush=True)
        for units in UNITS:
            model = growable(LlamaForCausalLM(REAL)).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
            plan = by_hand(model, units)
            surgery[units].append(clocked(lambda: grow_(model, plan, optimizer))[0] / seconds)  # noqa: B023
    return {"events": runs, "surgery_in_steps_by_units_of_a_linear": surgery}


def simulated() -> dict[str, Any]:
    """Times of what is counted and priced, and the memory of an analysis of all linears by their shapes."""
    with torch.device("meta"):
        model = growable(LlamaForCausalLM(SEVEN_BILLION))
    priced, _ = clocked(lambda: CostBook(model))
    counted, macs = clocked(lambda: count_macs(model))
    sites = [site for site in model.growable_linears() if not site.nested]
    shapes = [tuple(site.module.weight.shape) for site in sites]
    gib = 4 / 2**30  # of float32
    return {
        "parameters": count_parameters(model),
        "macs": macs,
        "linears": len(sites),
        "price_seconds": priced,
        "count_seconds": counted,
        "gib": {
            "weights_in_float32": count_parameters(model) * gib,
            "kept_tokens_of_all_linears": sum(TOKENS * (rows + columns) for rows, columns in shapes) * gib,
            "second_moments_of_all_linears": sum(columns**2 for _, columns in shapes) * gib,
            "directions_of_depth": sum(rows * (columns + 1) for rows, columns in shapes) * gib,
        },
        "peak_mib": peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["real", "simulated"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    found = simulated() if options.part == "simulated" else real(options.repeats)
    found |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps(found, indent=2))
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
