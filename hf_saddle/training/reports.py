"""What will happen and what an event did, for logs and for people."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import TrainerState, TrainingArguments

from ..growth import GrowthConfig, GrowthEvent, GrowthPlan, count_macs, count_parameters
from ..growth.budget import sizes
from ..growth.operators import HEAD_OPERATORS, NEURON_OPERATORS
from ..growth.records.block_records import block_texts
from ..models.modeling_saddle import GrowablePreTrainedModel
from .checks.model_checks import growable_paths
from .course import Course, announcement


logger = logging.getLogger(__name__)


def announce(
    course: Course,
    config: GrowthConfig,
    args: TrainingArguments,
    state: TrainerState,
    model: GrowablePreTrainedModel,
    events_done: int,
) -> None:
    """Say before the first step which events a training will have; a warning if there are none."""
    number = len(growable_paths(model, config))
    line, grows = announcement(config, course, model, number, step=state.global_step, events_done=events_done)
    if grows:
        say(line, args, state)
    elif state.is_world_process_zero and state.global_step < state.max_steps:
        logger.warning(line)


def say(line: str, args: TrainingArguments, state: TrainerState) -> None:
    """A line for people, beside the progress bar where there is one."""
    if not state.is_world_process_zero:
        return
    if args.disable_tqdm:
        logger.info(line)
    else:
        tqdm.write(line)


def size_metrics(model: GrowablePreTrainedModel, config: GrowthConfig) -> dict[str, float]:
    """The size of a model, and the share of what it may grow by that is used, as numbers for a log."""
    size, initial, final = sizes(model, config)
    metrics: dict[str, float] = {"growth_parameters": count_parameters(model), "growth_macs": count_macs(model)}
    if math.isfinite(final) and final > initial:
        metrics["growth_budget_used"] = (size - initial) / (final - initial)
    return metrics


def growth_metrics(event: GrowthEvent) -> dict[str, float]:
    """What an event did, as numbers for a log."""
    chosen = dict.fromkeys(event.candidates, 0) | event.chosen
    metrics: dict[str, float] = {
        **{f"growth_candidates_{operator}": count for operator, count in event.candidates.items()},
        **{f"growth_chosen_{operator}": count for operator, count in chosen.items()},
        "growth_neurons": event.neurons,
        **({"growth_heads": event.heads} if event.heads else {}),
        **({"growth_blocks": len(event.blocks)} if event.blocks else {}),
        "growth_seconds": event.seconds,
    }
    if event.forecast is not None:
        name = "growth_predicted_change" if event.forecast == "event" else "growth_next_step_change"
        metrics[name] = -event.predicted_gain
        if event.predicted_error is not None:
            metrics["growth_predicted_error"] = event.predicted_error
    if event.loss_before is not None:
        metrics["growth_probe_loss"] = event.loss_before
    if event.loss_before is not None and event.loss_after is not None:
        metrics["growth_measured_change"] = event.loss_after - event.loss_before
    if event.layers:
        values = [layer["eigenvalue"] for layer in event.layers]
        metrics["growth_eigenvalue_min"] = min(value["min"] for value in values)
        metrics["growth_eigenvalue_max"] = max(value["max"] for value in values)
        total = sum(layer["eigenvalue"]["mean"] * layer["chosen"] for layer in event.layers)
        metrics["growth_eigenvalue_mean"] = total / sum(layer["chosen"] for layer in event.layers)
    return metrics


def describe(event: GrowthEvent, number: int) -> str:
    """A line for people."""
    where = f"Growth event {number} at step {event.step} (epoch {event.epoch or 0:.2f})"
    if not event.layers and not event.blocks:
        why = f" {event.held_back}" if event.held_back else ""
        return f"{where}: nothing grows, {event.parameters_after:,} parameters, {event.seconds:.1f} s.{why}"
    linears = {layer["linear"] for layer in event.layers if layer["operator"] in NEURON_OPERATORS}
    what = ", ".join(grown(event, f" in {len(linears)} linears")) + (
        ", all else frozen," if event.frozen else "," * bool(event.blocks)
    )
    change = f", {prediction(event)}" if event.forecast is not None else ""
    if event.loss_before is not None and event.loss_after is not None:
        places = _places(event.predicted_error)
        measured = event.loss_after - event.loss_before
        change += f", measured {measured:+.{places}f} (probe loss {event.loss_before:.4f} → {event.loss_after:.4f})"
    ratio = event.parameters_after / event.parameters_before
    return (
        f"{where}: {what} by {', '.join(event.operators)}, "
        f"{event.parameters_before:,} → {event.parameters_after:,} parameters (×{ratio:.3f}){change}, "
        f"{event.seconds:.1f} s"
    )


def grown(of: GrowthEvent | GrowthPlan, where: str = "") -> list[str]:
    """What an event or a plan lets grow, kind by kind, in words; `where` its neurons are may follow their number."""
    neurons, heads = (
        sum(number for name, number in of.chosen.items() if name in kind)
        for kind in (NEURON_OPERATORS, HEAD_OPERATORS)
    )
    told = [f"{neurons} neurons{where}"] * bool(neurons) + [f"{heads} attention heads"] * bool(heads)
    return told + block_texts(of.blocks)


def by_layer(layers: Iterable[Mapping[str, Any]]) -> list[str]:
    """The same layer by layer, of their records."""
    return [
        f"  {layer['linear']}: {layer['chosen']} of {layer['candidates']} by {layer['operator']}" for layer in layers
    ]


def prediction(of: GrowthEvent | GrowthPlan) -> str:
    """What an event with a forecast is predicted to do to the loss, with its standard error, in words."""
    places = _places(of.predicted_error)
    error = "" if of.predicted_error is None else f" ± {of.predicted_error:.{places}f}"
    when = "of samples that chose nothing" if of.forecast == "event" else "by a half natural step after it"
    return f"predicted {-of.predicted_gain:+.{places}f}{error} {when}"


def _places(error: float | None) -> int:
    """Decimal places that show two digits of an error, and four at least."""
    return max(4, 1 - math.floor(math.log10(error))) if error else 4


def lr_ratio(optimizer: Optimizer, peak: float) -> float:
    """
    The learning rate relative to its peak.

    Args:
        optimizer (`Optimizer`): Its first group counts.
        peak (`float`): The peak, where no scheduler has noted the initial rate in the group.
    """
    group = optimizer.param_groups[0]
    highest = float(group.get("initial_lr", peak))
    return float(group["lr"]) / highest if highest > 0 else 1.0
