"""The report's section on equal seconds: uniform models of all widths, a search of shapes, and ways to grow."""

import numpy as np

from .experiments import (
    SECONDS_BUDGET,
    SECONDS_RATES,
    best_rate,
    best_static,
    best_uniform,
    cared_for,
    in_seconds,
)
from .files import results
from .shapes import ROUNDS
from .statistics import bootstrap, paired, text
from .tables import Rows, by_arm, difference, measured, table


IMAGES = 10_000  # of the test split


def seconds() -> list[str]:
    """Learning rates, the arms, and their paired differences from the best uniform model and from random units."""
    arms, tuned = by_arm(results("seconds")), by_arm(results("seconds_tuning"))
    if not arms:
        return []
    names = [arm.name for arm in in_seconds()]
    rates = [
        (
            name,
            *(
                text(list(measured(tuned[f"{name}, {rate:g}"], "validation", "loss").values()), digits=3)
                for rate in SECONDS_RATES
            ),
        )
        for name in names
    ]
    body = []
    for arm in in_seconds():
        rows = arms.get(arm.name, [])
        if rows:
            events = [sum(event["cost"] for event in row["events"]) / SECONDS_BUDGET for row in rows]
            body.append(
                (
                    arm.name,
                    f"{best_rate(arm):g}",
                    str(len(rows)),
                    f"{np.mean([row['parameters'] for row in rows]):,.0f}",
                    f"{np.mean([row['steps'] for row in rows]):,.0f}",
                    text([row["pace"] for row in rows]),
                    f"{100 * np.mean(events):.1f} %" if arm.events else "–",
                    text(list(measured(rows, "test", "accuracy").values()), 100),
                    text(list(measured(rows, "test", "loss").values()), digits=3),
                )
            )
    header = ("arm", "rate", "seeds", "parameters", "steps", "a step at the end", "events", "accuracy (%)", "loss")
    pairs = [(name, best_uniform().name) for name in names if name in arms and name != best_uniform().name]
    pairs += [(name, f"{name}, random in the same linears") for name in names]
    pairs += [("growth", other) for other in (best_static().name, "gromo")]
    pairs += [(name, "uniform, MLPs 4 wide") for name in ("gromo", "uneven halves")]
    differences = [
        (first, second, *difference(arms[first], arms[second]), drawn_anew(arms[first], arms[second]))
        for first, second in pairs
        if first in arms and second in arms
    ]
    return [
        "## In equal seconds",
        "",
        f"Every arm spends what {SECONDS_BUDGET:,} steps of the large model take, events included; seconds of a step "
        "are those of the large model, timed in turns with each model, before the training and after every event. "
        "Validation loss by learning rate, of two seeds; each arm takes its best, and the best uniform model is the "
        "one of the lowest.",
        "",
        *table(("arm", *(f"{rate:g}" for rate in SECONDS_RATES)), rates),
        *table(header, body),
        *table(("arm", "minus", "seeds", "accuracy (points)", "loss", "accuracy, drawn anew"), differences),
        "*Drawn anew*: 95 % of the differences when both seeds and test images are drawn anew.",
        "",
        *_search(arms.get(best_static().name, [])),
        *_width_trials(),
        *_aftercare(),
    ]


def _aftercare() -> list[str]:
    """How new parameters are trained, several plans, schedules and sizes, on the validation split."""
    arms = by_arm(results("aftercare"))
    losses = {name: measured(rows, "validation", "loss") for name, rows in arms.items()}
    plain = best_uniform().name
    body = []
    for arm in cared_for():
        if rows := arms.get(arm.name, []):
            control = "growth" if arm.events else plain
            body.append(
                (
                    arm.name,
                    str(len(rows)),
                    f"{np.mean([row['parameters'] for row in rows]):,.0f}",
                    f"{np.mean([row['steps'] for row in rows]):,.0f}",
                    text(list(losses[arm.name].values()), digits=3),
                    *(
                        "–"
                        if other == arm.name
                        else text(paired(losses[arm.name], losses.get(other, {})), digits=3, sign=True)
                        for other in (control, plain)
                    ),
                )
            )
    if not body:
        return []
    header = ("arm", "seeds", "parameters", "steps", "validation loss", "minus the same without", f"minus {plain}")
    return [
        "### After an event, and how far",
        "",
        "The default options in equal seconds, with one thing changed at a time; *the same without* is growth, for "
        "uniform models the uniform one.",
        "",
        *table(header, body),
    ]


def _width_trials() -> list[str]:
    """Ways to grow in width alone, of one seed."""
    body = [
        (row["arm"], f"{row['parameters']:,}", f"{row['steps']:,}", f"{row['validation']['loss']:.3f}")
        for row in results("width_trials")
    ]
    head = ["### Trials of growth in width alone", "", "Validation loss of one seed, at the rate 0.032.", ""]
    return [*head, *table(("way", "parameters", "steps", "validation loss"), body)] if body else []


def _search(winner: Rows) -> list[str]:
    """The rounds of the search of shapes, and what they took against the runs of the shape that they found."""
    rounds = {experiment: results(experiment) for experiment in ROUNDS}
    if not winner or not all(rounds.values()):
        return []
    columns = [by_arm(rows) for rows in rounds.values()]
    body = [
        (
            name,
            *(text(list(measured(found.get(name, []), "validation", "loss").values()), digits=3) for found in columns),
        )
        for name in columns[0]
    ]
    spent = sum(row["seconds"] for rows in rounds.values() for row in rows)
    return [
        "### The search of a static shape",
        "",
        "Validation loss of one seed by share of the budget; the best five of the first round go on to the second, "
        f"the best two to the third. All of it took {spent:.0f} s of the processor, "
        f"{spent / np.mean([row['seconds'] for row in winner]):.1f} times a run of the shape that it found.",
        "",
        *table(("widths of the MLPs", *(f"{share:g}" for share, _ in ROUNDS.values())), body),
    ]


def drawn_anew(first: Rows, second: Rows) -> str:
    """The interval over seeds and test images, in points."""
    found = bootstrap(measured(first, "test", "right"), measured(second, "test", "right"), IMAGES)
    return "–" if found is None else f"{100 * found[0]:+.2f} to {100 * found[1]:+.2f}"
