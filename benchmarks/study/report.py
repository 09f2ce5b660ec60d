"""Tables and pictures of what the runs found.

    python -m benchmarks.study.report      # writes benchmarks/study/results/REPORT.md and its pictures

Intervals are 95 % of Student's t over seeds; differences are paired by seed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .experiments import LARGE_PARAMETERS, LEARNING_RATE, SIZES, TARGET
from .pictures import curves, fading
from .run import RESULTS, results
from .statistics import interval, paired, rank_correlation, text


Rows = list[dict[str, Any]]


def by_arm(rows: Rows) -> dict[str, Rows]:
    """The runs of every arm, in the order of the first ones."""
    found: dict[str, Rows] = defaultdict(list)
    for row in rows:
        found[row["arm"]].append(row)
    return dict(found)


def measured(rows: Rows, split: str, name: str) -> dict[int, float]:
    """A figure of every seed."""
    return {row["seed"]: row[split][name] for row in rows}


def table(header: Iterable[str], body: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    lines = [tuple(header), *(tuple(row) for row in body)]
    lines.insert(1, tuple("---" for _ in lines[0]))
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


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
    """All arms from scratch at equal compute."""
    arms = by_arm(results("headline") + results("choices"))
    if not arms:
        return []
    large, small = (measured(arms[name], "test", "accuracy") for name in ("uniform, large", "uniform, small"))
    body = []
    for name, rows in sorted(arms.items(), key=lambda item: -interval([r["test"]["accuracy"] for r in item[1]])[0]):
        accuracy, loss = (measured(rows, "test", figure) for figure in ("accuracy", "loss"))
        growth = [row["growth_macs"] / row["compute"] for row in rows]
        body.append(
            (
                name,
                str(len(rows)),
                f"{np.mean([row['parameters'] for row in rows]):,.0f}",
                f"{np.mean([row['steps'] for row in rows]):,.0f}",
                text(list(accuracy.values()), 100),
                text(list(loss.values()), digits=3),
                text(paired(accuracy, large), 100, sign=True),
                text(paired(accuracy, small), 100, sign=True),
                f"{100 * np.mean(growth):.1f} %" if any(growth) else "–",
            )
        )
    header = ("arm", "seeds", "parameters", "steps", "test accuracy (%)", "test loss")
    lines = [
        "## From scratch at equal compute",
        "",
        f"The grown arms stop at {TARGET:,} parameters, 90 % of the large model's {LARGE_PARAMETERS:,}.",
        "",
        *table((*header, "against large", "against small", "compute spent on growing"), body),
        "Twins that differ in one choice, in points of test accuracy and in test loss:",
        "",
    ]
    pairs = (
        ("split, line search", "split, random, line search"),
        ("split", "split, random"),
        ("split", "split, random directions"),
        ("zero gain, line search", "zero gain, random, line search"),
        ("zero gain, line search", "zero gain, random directions, line search"),
        ("zero gain", "zero gain, random"),
        ("zero gain, line search", "zero gain"),
        ("split, line search", "split"),
        ("zero gain, line search", "split, line search"),
        ("auto, line search", "uniform, 90 %"),
        ("residual pair, paper score", "uniform, 90 %"),
    )
    body = []
    for first, second in pairs:
        if first in arms and second in arms:
            points, losses = (
                paired(measured(arms[first], "test", figure), measured(arms[second], "test", figure))
                for figure in ("accuracy", "loss")
            )
            body.append(
                (first, second, str(len(points)), text(points, 100, sign=True), text(losses, digits=3, sign=True))
            )
    lines += table(("arm", "minus", "seeds", "accuracy (points)", "loss"), body)
    lines += ["![Validation accuracy over compute](curves.png)", ""]
    curves(RESULTS / "curves.png", arms)
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
        body.append((criterion, str(len(rows)), str(len(rows[0])), *cells))
    if not body:
        return []
    head = (
        "Spearman's correlation of the predicted gain of single neurons with the decrease of the validation loss when "
        "the neuron alone grows; later is 100 steps on, relative to no growth."
    )
    return [
        "## Predicted and realised gains",
        "",
        head,
        "",
        *table(("criterion", "seeds", "neurons", "at once", "later"), body),
    ]


def timing() -> list[str]:
    """Number and moments of events."""
    arms = by_arm(results("timing"))
    if not arms:
        return []
    reference = by_arm(results("headline")).get("auto, line search", [])
    arms = {"three events, at 10, 25 and 40 %": [row for row in reference if row["seed"] < 2]} | arms
    first = measured(next(iter(arms.values())), "validation", "accuracy")
    body = []
    for name, rows in arms.items():
        accuracy = measured(rows, "validation", "accuracy")
        body.append(
            (
                name,
                str(len(rows)),
                f"{np.mean([row['steps'] for row in rows]):,.0f}",
                text(list(accuracy.values()), 100),
                text(paired(accuracy, first), 100, sign=True) if rows is not next(iter(arms.values())) else "–",
                f"{100 * np.mean([row['growth_macs'] / row['compute'] for row in rows]):.1f} %",
            )
        )
    header = ("events", "seeds", "steps", "validation accuracy (%)", "against three", "compute spent on growing")
    return ["## When, and how often", "", "The arm `auto, line search`.", "", *table(header, body)]


def sizes() -> list[str]:
    """Three sizes of the residual stream."""
    arms = by_arm(results("sizes"))
    body = []
    for size in SIZES:
        for name, rows in arms.items():
            if name.startswith(f"{size}: "):
                accuracy = measured(rows, "validation", "accuracy")
                against = [
                    text(
                        paired(accuracy, measured(arms.get(f"{size}: {other}", []), "validation", "accuracy")),
                        100,
                        sign=True,
                    )
                    for other in ("uniform, large", "uniform, small")
                ]
                body.append(
                    (
                        size,
                        name.partition(": ")[2],
                        str(len(rows)),
                        f"{np.mean([row['parameters'] for row in rows]):,.0f}",
                        text(list(accuracy.values()), 100),
                        *against,
                    )
                )
    if not body:
        return []
    header = ("size", "arm", "seeds", "parameters", "validation accuracy (%)", "against large", "against small")
    head = "Each size at the compute of 1,500 steps of its own large model (MLPs of four times its width)."
    return ["## Sizes", "", head, "", *table(header, body)]


PARTS: tuple[Callable[[], list[str]], ...] = (tuning, scratch, event, neurons, timing, sizes)


def main() -> None:
    lines = ["# When growing pays: the figures", "", "Made by `python -m benchmarks.study.report`.", ""]
    for part in PARTS:
        lines += part()
    (RESULTS / "REPORT.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
