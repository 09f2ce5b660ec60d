"""How far the prediction of an event, and its standard error, can be trusted: predicted against fresh samples.

    OMP_NUM_THREADS=1 python benchmarks/predictions.py --output benchmarks/results/predictions.json

Small models of images and of text are trained for a while. At each stage events are planned from several probes of
samples that the model is trained on, drawn anew, and carried out on a copy; the rest of those samples are fresh ones,
on which the decrease of the loss is measured. There are some ten times as many of these as samples that judge (digits
come shifted by a pixel in all directions), so that what is left is the prediction's own error. `z` is the difference
of both in standard errors: that of the prediction, as the plan gives it, and that of the measurement. Honest errors
leave 95 % of the events within 2.
"""

import argparse
import copy
import json
import statistics
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy, pad
from transformers import TrainingArguments, logging

from hf_saddle import GrowthConfig, GrowthTrainer, grow_, plan_event
from hf_saddle.demo.arguments import ModelAndDataArguments
from hf_saddle.demo.job import build_trainer, load_run_data


IMAGES = {"image_size": 8, "patch_size": 2, "hidden_size": 32}
TEXTS = {"task": "causal-lm", "block_size": 32, "hidden_size": 32, "num_hidden_layers": 2}
TASKS: dict[str, dict[str, Any]] = {
    "ViT, digits": IMAGES | {"architecture": "vit", "num_hidden_layers": 2},
    "DeiT, digits": IMAGES | {"architecture": "deit"},
    "ConvNeXt, digits": IMAGES | {"architecture": "convnext", "num_hidden_layers": 2},
    "Llama, texts": TEXTS | {"architecture": "llama"},
    "GPT-2, texts": TEXTS | {"architecture": "gpt2"},
}
STAGES = (60, 150, 300)  # steps of training


def trained(arguments: ModelAndDataArguments, steps: int, folder: str) -> GrowthTrainer:
    """A trainer whose model was trained for some steps on the samples of its training split."""
    fields = {"max_steps": steps, "learning_rate": 2e-3, "per_device_train_batch_size": 64, "report_to": "none"}
    training = TrainingArguments(folder, **fields, save_strategy="no", disable_tqdm=True, use_cpu=True)
    data = load_run_data(arguments, 0)
    if "pixel_values" in data.prepared["train"].features:
        data.prepared["train"] = shifted(data.prepared["train"])
    trainer = build_trainer(arguments, training, data)
    trainer.train()
    return trainer


def shifted(images: Dataset) -> Dataset:
    """Images as they are, and shifted by one pixel in the eight directions."""
    pixels, labels = images[:]["pixel_values"], images[:]["labels"]
    around = pad(pixels, (1, 1, 1, 1), mode="replicate")
    height, width = pixels.shape[2:]
    moved = [around[:, :, y : y + height, x : x + width] for y, x in product(range(3), repeat=2)]
    columns = {"pixel_values": torch.cat(moved).numpy(), "labels": labels.repeat(len(moved)).numpy()}
    return Dataset.from_dict(columns).with_format("torch")


@torch.no_grad()
def losses(model: Any, data: Any) -> torch.Tensor:
    """The loss of every sample."""
    found = []
    for start in range(0, len(data), 128):
        batch = {name: value for name, value in data[start : start + 128].items() if name != "attention_mask"}
        logits = model(**batch).logits
        labels = batch["labels"]
        if labels.dim() == 2:
            logits, labels = logits[:, :-1].transpose(1, 2), labels[:, 1:]
        values = cross_entropy(logits, labels, reduction="none")
        found.append(values.flatten(1).mean(1) if values.dim() > 1 else values)
    return torch.cat(found).double()


def event(trainer: GrowthTrainer, probe: int, seed: int) -> dict[str, float] | None:
    """A planned event against fresh samples; `None` where nothing would grow."""
    data = trainer.train_dataset
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    own, fresh = data.select(order[:probe]), data.select(order[probe:])
    model = trainer.model.eval()
    batches = [own[start : start + 64] for start in range(0, probe, 64)]
    plan = plan_event(model, batches, GrowthConfig(probe_samples=probe, growth_seed=seed))
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
    parser.add_argument("--probe", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(TASKS))
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "predictions.json"))
    options = parser.parse_args()
    logging.set_verbosity_error()
    path = Path(options.output)
    report = json.loads(path.read_text()) if path.is_file() else {}
    for name in options.only:
        events = []
        for steps in STAGES:
            with TemporaryDirectory() as folder:
                trainer = trained(ModelAndDataArguments(**TASKS[name]), steps, folder)
            for seed in range(options.repeats):
                found = event(trainer, options.probe, seed)
                if found is not None:
                    events.append({"steps": steps} | found)
        report[name] = summary(events) | {"probe": options.probe, "each": events}
        print(name, json.dumps({key: value for key, value in report[name].items() if key != "each"}), flush=True)
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
