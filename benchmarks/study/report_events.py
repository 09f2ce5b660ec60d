"""The report's sections on single events and single neurons."""

from typing import Any

import numpy as np

from .files import RESULTS, results
from .pictures import fading
from .statistics import rank_correlation, text
from .tables import table


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


def rankings() -> list[str]:
    """What is left of one event, by what chose the neurons."""
    rows = results("rankings")
    if not rows:
        return []
    after = rows[0]["after"]
    steps = (0, 100, after[-1])
    default = "pursuit, natural step"
    body = []
    for name in rows[0]["branches"]:
        branches = [(row["branches"][name], row["branches"][default], row["branches"]["none"]) for row in rows]
        added = np.mean([own.get("parameters_after", 0) - own.get("parameters_before", 0) for own, *_ in branches])
        seconds = [own["training_seconds"] / none["training_seconds"] for own, _, none in branches]
        differences = [
            [1e3 * (own["losses"][place] - other["losses"][place]) for own, other, _ in branches]
            for place in map(after.index, steps)
        ]
        cells = [text(values, digits=1, sign=True) if name != default else "0" for values in differences]
        body.append((name, f"{added:,.0f}", *cells, text(seconds, digits=2)))
    head = (
        f"Validation loss minus that of `{default}` (10⁻³, positive is worse), {len(rows)} seeds, paired; the "
        "processor time of a step is relative to that of the model that does not grow."
    )
    header = ("branch", "new parameters", "at once", *(f"after {step} steps" for step in steps[1:]), "time of a step")
    return ["## What chooses the neurons of one event", "", head, "", *table(header, body)]


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
    for criterion in ("width", "width, whitened", "depth", "depth, whitened"):
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
        for kind in ("similarity", "similarity_random"):
            cells.append(text([np.mean(list(r[kind].values())) for r in results("neurons") if r["arm"] == criterion]))
        body.append((criterion, str(len(rows)), str(len(rows[0])), *cells))
    if not body:
        return []
    head = (
        "Spearman's correlation of the predicted gain of single neurons with the decrease of the validation loss when "
        "the neuron alone grows; later is 100 steps on, relative to no growth. The mean decrease at once (10⁻³, over "
        "neurons of all seeds) is given by the sign of the eigenvalue. How alike units of a layer begin is the mean "
        "absolute cosine between their pre-activations, along the directions and along random ones."
    )
    header = ("criterion", "seeds", "neurons", "at once", "later", "decrease, negative", "decrease, positive")
    return [
        "## Predicted and realised gains",
        "",
        head,
        "",
        *table((*header, "alike", "alike, random"), body),
    ]
