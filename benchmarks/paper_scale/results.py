"""What an arm leaves for the comparison: accuracy, size, work and settings, as JSON beside its model."""

import json
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers

import hf_saddle
from hf_saddle import GrowthConfig, GrowthHistory, GrowthTrainer
from hf_saddle.growth import count_macs, count_parameters


RESULT_NAME = "result.json"


def training_flops(history: GrowthHistory, steps: int, batch: int) -> int:
    """
    Floating-point operations of all training steps, at the size that the model had in each.

    A multiply-accumulate counts as two, and a backward pass as two forward passes. The measurements of growth, which
    run on `probe_samples` images per event, and evaluation are not in it.
    """
    sizes = [(0, history.initial.macs), *((event.step, event.macs_after) for event in history.events)]
    ends = [*(start for start, _ in sizes[1:]), steps]
    return sum(6 * macs * (end - start) * batch for (start, macs), end in zip(sizes, ends, strict=True))


def save_result(
    trainer: GrowthTrainer,
    arguments: dict[str, Any],
    growth: GrowthConfig | None,
    metrics: dict[str, float],
    batch: int,
    seconds: float,
) -> dict[str, Any]:
    """
    Write `result.json` into the output folder.

    Args:
        trainer ([`GrowthTrainer`]): After training and evaluation.
        arguments (`dict`): The recipe's arguments, arm and data set among them.
        growth ([`GrowthConfig`], *optional*): How the arm grew.
        metrics (`dict[str, float]`): Of the last evaluation.
        batch (`int`): Images of one step on all processes.
        seconds (`float`): Duration of the training; of a resumed one, since it was resumed.

    Returns:
        `dict`: What was written.
    """
    state, model = trainer.state, trainer.model
    history = GrowthHistory.from_model(model)
    evaluations = [entry for entry in state.log_history if "eval_accuracy" in entry]
    result = {
        **{name: arguments[name] for name in ("arm", "dataset")},
        "seed": trainer.args.seed,
        "accuracy": metrics["eval_accuracy"],
        "top5_accuracy": metrics["eval_top5_accuracy"],
        "best_accuracy": max(entry["eval_accuracy"] for entry in evaluations),
        "parameters": count_parameters(model),
        "initial_parameters": history.initial.parameters,
        "macs": count_macs(model),
        "events": len(history),
        "epochs": state.epoch,
        "steps": state.global_step,
        "batch": batch,
        "training_flops": training_flops(history, state.global_step, batch),
        "seconds": seconds,
        "device": str(trainer.args.device),
        "processes": trainer.args.world_size,
        "recipe": arguments,
        "growth": None if growth is None else growth.to_dict(),
        "training": {name: value for name, value in trainer.args.to_sanitized_dict().items() if "token" not in name},
        "versions": {module.__name__: module.__version__ for module in (hf_saddle, torch, transformers, accelerate)},
    }
    Path(trainer.args.output_dir, RESULT_NAME).write_text(json.dumps(result, indent=2) + "\n")
    return result
