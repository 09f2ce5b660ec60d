"""Tables and pictures of what the runs found.

    python -m benchmarks.study.report      # writes benchmarks/study/results/REPORT.md and its pictures

Intervals are 95 % of Student's t over seeds; differences are paired by seed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .experiments import BEST, CONTROL, LARGE, LARGE_PARAMETERS, LEARNING_RATE, SIZES, SMALL, STEPS, TARGET
from .files import RESULTS, results
from .pictures import curves, fading
from .report_finetuning import finetuning
from .statistics import rank_correlation, text
from .tables import by_arm, comparison, difference, measured, table


TWINS = (
    ("zero gain, line search", "zero gain, random, line search"),
    ("zero gain, line search", "zero gain, random directions, line search"),
    (BEST, CONTROL),
    (BEST, "uniform, small"),
    (BEST, "uniform, 90 %"),
    (BEST, "uniform, large"),
    (BEST, "one shot"),
    ("zero gain", "zero gain, random"),
    ("zero gain, line search", "zero gain"),
    ("split, line search", "split, random, line search"),
    ("split", "split, random"),
    ("split, line search", "split"),
    ("split, line search", "zero gain, line search"),
    ("auto, line search", "zero gain, random, line search"),
    ("auto, line search", "uniform, 90 %"),
    ("residual pair, paper score", "zero gain, random, line search"),
)


def tuning() -> list[str]:
    """Which learning rate each kind of arm wants."""
    arms = by_arm(results("tuning"))
    names = sorted({name.rpartition(", ")[0] for name in arms})
    rates = sorted({float(name.rpartition(", ")[2]) for name in arms})
    body = [
        (
            name,
            *(
                text(list(measured(arms.get(f"{name}, {rate:g}", []), "validation", "accuracy").values()), 100)
                for rate in rates
            ),
        )
        for name in names
    ]
    head = f"Validation accuracy (%) of one seed by peak learning rate; all other experiments use {LEARNING_RATE:g}."
    return ["## Learning rates", "", head, "", *table(("arm", *(f"{rate:g}" for rate in rates)), body)]


def scratch() -> list[str]:
    """All arms from scratch, at equal compute and at equal steps."""
    head, again, late, steps = (by_arm(results(name)) for name in ("headline", "confirmation", "late", "steps"))
    arms = head | by_arm(results("choices") + results("one_shot"))
    uniform = {name: rows for name, rows in head.items() if name.startswith("uniform")}
    widths = [fields["intermediate_size"] for fields in (SMALL, LARGE)]
    lines = [
        "## From scratch",
        "",
        f"MLPs are {widths[0]} wide in the small model, {widths[1]} in the large one. Grown models stop at {TARGET:,} "
        f"parameters, 90 % of the large model's {LARGE_PARAMETERS:,}. Differences are in points of test accuracy, "
        "paired by seed.",
    ]
    for title, group in (
        (f"### Growth early, equal compute ({STEPS:,} steps of the large model)", arms),
        ("### The best of these again, with other seeds", again),
        ("### Growth late, equal compute", uniform | late),
        ("### Growth early, equal steps", steps),
    ):
        if group:
            lines += ["", title, "", *comparison(group)]
    lines += ["### Twins that differ in one choice", ""]
    body = []
    for when, found in (
        ("early", arms),
        ("early, other seeds", again),
        ("early, all ten seeds", {name: head.get(name, []) + rows for name, rows in again.items()}),
        ("late", uniform | late),
        ("early, equal steps", steps),
    ):
        for first, second in TWINS:
            if first in found and second in found:
                body.append((when, first, second, *difference(found[first], found[second])))
    lines += table(("growth", "arm", "minus", "seeds", "accuracy (points)", "loss"), body)
    lines += ["![Validation accuracy over compute](curves.png)", ""]
    curves(RESULTS / "curves.png", head)
    return lines


def event() -> list[str]:
    """What one event does, at once and later."""
    lines: list[str] = ["## One event", ""]
    lines.append(
        "Validation loss relative to the branch that does not grow (10⁻³, negative is better), paired by seed."
    )
    for moment, when in (("early", "after a third of the training"), ("late", "in its last eighth")):
        rows = [row for row in results("event") if row["arm"] == moment]
        if not rows:
            continue
        after = rows[0]["after"]
        body, means = [], {}
        for name in rows[0]["branches"]:
            if name == "none":
                continue
            differences = [
                [
                    1e3 * (a - b)
                    for a, b in zip(row["branches"][name]["losses"], row["branches"]["none"]["losses"], strict=True)
                ]
                for row in rows
            ]
            columns = list(zip(*differences, strict=True))
            means[name] = [float(np.mean(column)) for column in columns]
            added = np.mean(
                [r["branches"][name]["parameters_after"] - r["branches"][name]["parameters_before"] for r in rows]
            )
            worth = [steps_worth(row, name) for row in rows]
            body.append(
                (
                    name,
                    f"{added:,.0f}",
                    *(text(columns[after.index(step)], digits=1, sign=True) for step in (0, 25, 100, after[-1])),
                    text(worth, digits=0),
                )
            )
        header = ("branch", "new parameters", *(f"after {step} steps" for step in (0, 25, 100, after[-1])))
        lines += ["", f"### Event {when} ({len(rows)} seeds)", "", *table((*header, "worth, in steps"), body)]
        fading(RESULTS / f"event_{moment}.png", after, means)
        lines += [f"![Loss against no growth, event {when}](event_{moment}.png)", ""]
    return [
        *lines,
        "An event is worth the number of steps after which the branch without growth first has the loss that the "
        "event reaches at once, as far as measured.",
        "",
    ]


def steps_worth(row: dict[str, Any], name: str) -> float:
    """Steps until the branch without growth reaches the loss of another right after its event."""
    target, losses = row["branches"][name]["losses"][0], row["branches"]["none"]["losses"]
    if target >= losses[0]:
        return 0.0
    best = np.minimum.accumulate(losses)
    if target < best[-1]:
        return float(row["after"][-1])
    return float(np.interp(-target, -best, row["after"]))


def neurons() -> list[str]:
    """Whether the predicted gain orders neurons by what they bring."""
    body = []
    for criterion in ("width", "depth"):
        rows = [row["neurons"] for row in results("neurons") if row["arm"] == criterion]
        if not rows:
            continue
        cells = []
        for when in ("at_once", "later"):
            cells.append(
                text(
                    [rank_correlation([n["predicted"] for n in row], [n[when] for n in row]) for row in rows],
                    sign=True,
                )
            )
        for sign in (-1, 1):
            cells.append(
                text(
                    [1e3 * n["at_once"] for row in rows for n in row if n["eigenvalue"] * sign > 0],
                    digits=2,
                    sign=True,
                )
            )
        similar = [np.mean(list(r["similarity"].values())) for r in results("neurons") if r["arm"] == criterion]
        body.append((criterion, str(len(rows)), str(len(rows[0])), *cells, text(similar)))
    if not body:
        return []
    head = (
        "Spearman's correlation of the predicted gain of single neurons with the decrease of the validation loss when "
        "the neuron alone grows; later is 100 steps on, relative to no growth. The mean decrease at once (10⁻³, over "
        "neurons of all seeds) is given by the sign of the eigenvalue."
    )
    header = ("criterion", "seeds", "neurons", "at once", "later", "decrease, negative", "decrease, positive")
    return [
        "## Predicted and realised gains",
        "",
        head,
        "",
        *table((*header, "mean cosine of a layer's directions"), body),
    ]


def timing() -> list[str]:
    """Number and moments of events."""
    reference, arms = by_arm(results("headline")), by_arm(results("timing"))
    if not arms:
        return []
    seeds = {row["seed"] for rows in arms.values() for row in rows}
    shown = {
        name: [row for row in reference[name] if row["seed"] in seeds] for name in ("uniform, large", "uniform, small")
    }
    shown["three events, early"] = [row for row in reference[BEST] if row["seed"] in seeds]
    shown["three events, late"] = [row for row in results("late") if row["arm"] == BEST and row["seed"] in seeds]
    return [
        "## When, and how often",
        "",
        f"The arm `{BEST}` on the validation split.",
        "",
        *comparison(shown | arms, "validation"),
    ]


def sizes() -> list[str]:
    """Three widths of the residual stream."""
    arms = by_arm(results("sizes"))
    lines = ["## Sizes", "", "Each at the compute of 1,000 steps of its own large model, on the validation split.", ""]
    for hidden in SIZES:
        prefix = f"{hidden} wide: "
        found = {name.removeprefix(prefix): rows for name, rows in arms.items() if name.startswith(prefix)}
        if found:
            lines += [f"### {hidden} wide", "", *comparison(found, "validation")]
    return lines if arms else []


PARTS: tuple[Callable[[], list[str]], ...] = (tuning, scratch, event, neurons, timing, sizes, finetuning)


def main() -> None:
    lines = ["# When growing pays: the figures", "", "Made by `python -m benchmarks.study.report`.", ""]
    for part in PARTS:
        lines += part()
    (RESULTS / "REPORT.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
