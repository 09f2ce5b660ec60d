"""`hf-saddle inspect` and `hf-saddle analyze`: what a model is, and where it wants to grow."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from transformers.activations import ACT2FN

from hf_saddle.curvature import analyze_curvature
from hf_saddle.demo.arguments import ModelAndDataArguments
from hf_saddle.demo.options import parse
from hf_saddle.growth import GrowthConfig, GrowthHistory, GrowthPlan, count_macs, count_parameters
from hf_saddle.growth.records.layer_record import layer_record
from hf_saddle.hub.card_task import sample_name
from hf_saddle.hub.pictures.drawing import check_matplotlib
from hf_saddle.training import plan_event, probe_batches
from hf_saddle.training.checks.model_checks import growable_paths
from hf_saddle.training.reports import by_layer, grown, prediction

from .common import load_data, load_model, load_shape, print_table, quiet, task_of


def print_facts(source: str, revision: str | None, as_json: bool) -> None:
    """Print shapes, size and growth history of a model, whose weights are not read."""
    quiet()
    facts = _facts(source, revision)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(f"{facts['class']}: {facts['parameters']:,} parameters, {facts['macs']:,} MACs per {facts['sample']}")
    widths, depths = facts["shapes"]["widths"], facts["shapes"]["skip_sizes"]
    # `4 › 2`: four units, fed by two more.
    rows = [
        [root, str(widths.get(root, "")), " › ".join(map(str, depths.get(root, ())))]
        for root in sorted({*widths, *depths}, key=_by_number)
    ]
    print_table(f"Shapes (branch units: {facts['skip_unit']})", ["linear", "width", "depth"], rows)
    history = facts["history"]
    if history is None:
        typer.echo("No growth history.")
        return
    typer.echo(f"{GrowthHistory.from_dict(history).table()}\n{facts['history_check']}")


def _facts(source: str, revision: str | None) -> dict[str, Any]:
    model, check = load_shape(source, revision), None
    if model.growth_history is not None:
        history = GrowthHistory.from_model(model)
        check = history.summary()
        try:
            history.check(model)
        except ValueError as error:
            check = f"The history does not fit this model: {error}"
    return {
        "class": type(model).__name__,
        "model_type": type(model.config).model_type,
        "parameters": count_parameters(model),
        "macs": count_macs(model),
        "sample": sample_name(model),
        "labels": model.config.num_labels,
        "skip_unit": model.config.skip_unit,
        "shapes": model.shapes().to_json(),
        "history": model.growth_history,
        "history_check": check,
    }


def _by_number(path: str) -> list[tuple[int, str]]:
    """Sorts paths by their indices, as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]


def print_curvature(
    source: str,
    arguments: ModelAndDataArguments,
    criteria: list[str],
    *,
    whiten: bool,
    split: str,
    seed: int,
    defaults: dict[str, Any],
    picture: Path | None,
    revision: str | None,
    as_json: bool,
    growth: Sequence[str] = (),
) -> None:
    """
    Print where the neurons of a model want more depth or width, and what an event would do.

    The samples are those that the first event of a training on these data draws.

    Args:
        source (`str`): Folder or repo of the model.
        arguments ([`ModelAndDataArguments`]): The data.
        criteria (`list[str]`): What is measured; what `growth` ranks by if empty.
        whiten (`bool`): Whether directions are relative to the second moments of the inputs.
        split (`str`): Split of the data.
        seed (`int`): Seed of the training, by which data without splits are divided.
        defaults (`dict`): Defaults of the [`~hf_saddle.GrowthConfig`].
        picture (`Path`, *optional*): File that all eigenvalues are drawn into.
        revision (`str`, *optional*): Revision of the model.
        as_json (`bool`): Whether to print JSON.
        growth (`Sequence[str]`): Options of the [`~hf_saddle.GrowthConfig`], as on a command line.

    Raises:
        ValueError: If the picture has an ending that is not known, or the data do not fit the model.
        SystemExit: With code 2, if `growth` has an option that is unknown.
        ImportError: If a picture is wanted and matplotlib is not installed.
    """
    quiet()
    if picture is not None:
        check_matplotlib()
        if picture.suffix not in (".png", ".svg"):
            raise ValueError(f"`--picture` must end in .png or .svg, got {picture}.")
    usage = "%(prog)s SOURCE DATASET [options]"
    (config,) = parse([GrowthConfig], growth, defaults, prog="hf-saddle analyze", usage=usage)
    planned = True
    if criteria and set(criteria) != set(config.ranking):
        planned = len(criteria) == 1 and criteria[0] in config.known_criteria
        config = replace(config, criterion=criteria[0]) if planned else config
    model = load_model(source, revision)
    arguments.task, arguments.model_name_or_path = task_of(model), source
    data, collator = load_data(revision, model, arguments, split, seed)
    batches = probe_batches(data, config, collate_fn=collator)
    report = analyze_curvature(
        model,
        batches,
        criteria or (list(config.criteria) if config.kinds.neurons else ["width", "depth"]),
        linears=growable_paths(model, config),
        step_size=config.step_size,
        significance=config.significance,
        unit_activation=ACT2FN[model.config.skip_activation],
        whiten=whiten and config.directions != "eigenvectors",
        seed=config.growth_seed,
    )
    if picture is not None:
        from hf_saddle.hub.pictures.report_plot import draw_report  # which needs matplotlib

        draw_report(picture, report)
    plan = plan_event(model, batches, config) if planned else None
    if as_json:
        typer.echo(json.dumps(report.to_dict() | {"event": None if plan is None else _plan_facts(plan)}))
        return
    typer.echo(replace(report, skipped={}).summary())
    if report.skipped:
        typer.echo(_folded(report.skipped))
    if plan is not None:
        typer.echo(_planned(plan, config))


def _folded(skipped: dict[str, str]) -> str:
    """Layers that were not measured, by reason, in one line."""
    reasons = Counter(skipped.values())
    return f"skipped {len(skipped)} layers: " + "; ".join(f"{count} × {reason}" for reason, count in reasons.items())


def _planned(plan: GrowthPlan, config: GrowthConfig) -> str:
    """What an event would do, linear by linear."""
    if not plan:
        # Else a table with significant neurons, and an event that finds none, seem to contradict each other.
        halves = " The event chooses on one half of the samples that the table is of." if config.judged else ""
        return f"An event now would not grow anything. {plan.held_back}{halves}"
    told = f"; {prediction(plan)}" if plan.forecast is not None else ""
    what = ", ".join(grown(plan))
    head = f"An event now would grow {what}: {plan.parameters:,} parameters and {plan.macs:,} MACs{told}:"
    lines = by_layer(map(layer_record, plan.growths))
    return "\n".join([head if lines else f"{head[:-1]}.", *lines])


def _plan_facts(plan: GrowthPlan) -> dict[str, Any]:
    """A plan without its directions, fit for JSON."""
    names = ("parameters", "macs", "budget", "predicted_gain", "predicted_error", "forecast", "held_back")
    facts: dict[str, Any] = {name: getattr(plan, name) for name in names}
    growths, blocks = list(map(layer_record, plan.growths)), [block.to_dict() for block in plan.blocks]
    return facts | {"growths": growths, "blocks": blocks}
