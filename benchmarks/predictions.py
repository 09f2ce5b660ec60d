"""How far the prediction of an event, and its standard error, can be trusted: predicted against fresh samples.

    OMP_NUM_THREADS=1 python -m benchmarks.predictions --output benchmarks/results/predictions.json
    OMP_NUM_THREADS=1 python -m benchmarks.predictions --grown --output benchmarks/results/predictions_grown.json

Small models of images (Fashion-MNIST, made small) and of text are trained for a while. At each stage events are
planned from several probes of samples that the model is trained on, drawn anew, and carried out on a copy; the rest of
those are fresh ones, on which the decrease of the loss is measured. Half of a probe judges. `z` is the difference of
both in standard errors: that of the prediction, as the plan gives it, and that of the measurement. Honest errors leave
95 % of the events within 2. No two events have the same probe: events on the same samples err alike, of different
models too, as what the loss of a sample falls by is alike. With `--grown` the models have grown before, at 40 % of
their training, so that units of their branches may grow, too. Models that `--only` names are added to those in the
file.
"""

import argparse
import copy
import json
import statistics
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import disable_progress_bars
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments, logging

from hf_saddle import GrowthCallback, GrowthConfig, GrowthTrainer, grow_, plan_event
from hf_saddle.demo.arguments import ModelAndDataArguments
from hf_saddle.demo.job import RunData, build_trainer, load_run_data
from hf_saddle.models.sites import Place


IMAGES = {"dataset": "fashion-mnist", "max_samples": 12000, "image_size": 8, "patch_size": 2, "hidden_size": 32}
TEXTS = {"task": "causal-lm", "block_size": 32, "hidden_size": 32, "num_hidden_layers": 2}
TASKS: dict[str, dict[str, Any]] = {
    "ViT, images": IMAGES | {"architecture": "vit", "num_hidden_layers": 2},
    "DeiT, images": IMAGES | {"architecture": "deit"},
    "ConvNeXt, images": IMAGES | {"architecture": "convnext", "num_hidden_layers": 2},
    "Llama, texts": TEXTS | {"architecture": "llama"},
    "GPT-2, texts": TEXTS | {"architecture": "gpt2"},
}
STAGES = (60, 150, 300)  # steps of training


def trained(
    arguments: ModelAndDataArguments, data: RunData, steps: int, folder: str, grown: bool = False
) -> GrowthTrainer:
    """A trainer whose model was trained for some steps on the samples of its training split, and may have grown."""
    fields = {"max_steps": steps, "learning_rate": 2e-3, "per_device_train_batch_size": 64, "report_to": "none"}
    training = TrainingArguments(folder, **fields, save_strategy="no", disable_tqdm=True, use_cpu=True)
    growth = GrowthConfig(at=[0.4], max_growth=1.2, probe_samples=2000)  # which leaves some of the default budget
    trainer = build_trainer(arguments, training, data, [GrowthCallback(growth)] if grown else [])
    trainer.train()
    return trainer


@torch.no_grad()
def losses(model: Any, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The loss of every sample."""
    found = []
    for batch in batches:
        logits, labels = model(**batch).logits, batch["labels"]
        if labels.dim() == 2:
            logits, labels = logits[:, :-1].transpose(1, 2), labels[:, 1:]
        values = cross_entropy(logits, labels, reduction="none")
        found.append(values.flatten(1).mean(1) if values.dim() > 1 else values)
    return torch.cat(found).double()


def in_batches(samples: dict[str, torch.Tensor], chosen: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Some of the samples, 64 at a time."""
    return [{name: values[part] for name, values in samples.items()} for part in chosen.split(64)]


def event(model: Any, samples: dict[str, torch.Tensor], probe: int, seed: int) -> dict[str, float] | None:
    """A planned event against fresh samples; `None` where nothing would grow."""
    order = torch.randperm(len(samples["labels"]), generator=torch.Generator().manual_seed(seed))
    own, fresh = in_batches(samples, order[:probe]), in_batches(samples, order[probe:])
    plan = plan_event(model, own, GrowthConfig(probe_samples=probe, growth_seed=seed))
    if not plan:
        return None
    grown = copy.deepcopy(model)
    grow_(grown, plan)
    decrease = losses(model, fresh) - losses(grown, fresh)
    measured, error = float(decrease.mean()), float(decrease.std() / len(decrease) ** 0.5)
    both = (plan.predicted_error**2 + error**2) ** 0.5
    # The error as it would be for as many samples as judge, from the spread of what really happens to fresh ones.
    spread = float(decrease.std() / (probe / 2) ** 0.5)
    return {
        "nested": sum(len(growth.neurons) for growth in plan.growths if Place.parse(growth.linear).nested),
        "predicted": plan.predicted_gain,
        "error": plan.predicted_error,
        "measured": measured,
        "measured_error": error,
        "error_by_fresh_samples": spread,
        "z": (plan.predicted_gain - measured) / both,
    }


def summary(events: list[dict[str, float]]) -> dict[str, float]:
    """What is told of the events of a model."""
    ratios = [found["predicted"] / found["measured"] for found in events]
    return {
        "events": len(events),
        "with_nested_units": sum(found["nested"] > 0 for found in events),
        "within_2_errors": sum(abs(found["z"]) <= 2 for found in events),
        "mean_z": statistics.mean(found["z"] for found in events),
        "within_0.7_to_1.4": sum(0.7 <= ratio <= 1.4 for ratio in ratios),
        "sums": sum(found["predicted"] for found in events) / sum(found["measured"] for found in events),
        "error_over_that_by_fresh_samples": statistics.median(
            found["error"] / found["error_by_fresh_samples"] for found in events
        ),
        "relative_error": statistics.median(found["error"] / found["predicted"] for found in events),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--probe", type=int, default=4000, help="at most half of the samples")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--grown", action="store_true", help="of models that have grown before")
    parser.add_argument("--only", nargs="*", default=list(TASKS))
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "predictions.json"))
    options = parser.parse_args()
    logging.set_verbosity_error()
    disable_progress_bars()
    path = Path(options.output)
    report = json.loads(path.read_text()) if path.is_file() else {}
    for name in options.only:
        arguments = ModelAndDataArguments(**TASKS[name])
        data, events = load_run_data(arguments, 0), []
        samples = data.prepared["train"].with_format("torch")[:]
        probe = min(options.probe, len(samples["labels"]) // 2)
        for steps in STAGES:
            with TemporaryDirectory() as folder:
                model = trained(arguments, data, steps, folder, options.grown).model.eval()
            for repeat in range(options.repeats):
                found = event(model, samples, probe, zlib.crc32(f"{name} {steps} {repeat} {options.grown}".encode()))
                print(name, steps, repeat, found and f"{found['predicted']:.2g} / {found['measured']:.2g}", flush=True)
                if found is not None:
                    events.append({"steps": steps} | found)
        report[name] = summary(events) | {"probe": probe, "fresh": len(samples["labels"]) - probe, "each": events}
        print(name, json.dumps({key: value for key, value in report[name].items() if key != "each"}), flush=True)
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
