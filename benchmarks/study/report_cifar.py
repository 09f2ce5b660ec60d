"""The report's section on CIFAR-100: at which budget the larger model wins, and growth there, in equal seconds."""

from itertools import product
from typing import Any

import numpy as np

from .cifar_arms import (
    ANY,
    BUDGET_EPOCHS,
    FINAL,
    GROWING,
    HIGHER,
    LARGEST,
    LOWER,
    MIDDLE,
    RANDOM,
    RATE,
    SILENT,
    SILENT_SOONER,
    SIZE,
    SOONER,
    STACKED,
    SWEPT,
    THREE,
    TRIED,
    WIDENED,
    WIDER,
    budget_name,
    tuned_losses,
)
from .files import results
from .report_seconds import drawn_anew
from .statistics import text
from .tables import Rows, by_arm, difference, measured, table


PAIRS = (
    *product((STACKED, SOONER, SILENT, SILENT_SOONER, WIDENED, GROWING, ANY), (MIDDLE, LARGEST)),
    *product((STACKED, SILENT), (THREE, WIDER)),
    (SILENT, STACKED),
    (WIDENED, RANDOM),
)


def cifar() -> list[str]:
    """Budgets, trials of growth, learning rates, the arms, and their paired differences."""
    budgets = by_arm(results("cifar_budgets"))
    if not budgets:
        return []
    head = (
        "ViTs 64 wide with 4 blocks and patches of 8 × 8 pixels on CIFAR-100, images mirrored and shifted, in equal "
        f"seconds: budgets are in epochs of the model with MLPs 256 wide ({SIZE:,} parameters). Weights begin with "
        "the deviation in the second column."
    )
    lines = ["## CIFAR-100", "", head + " Validation accuracy (%) of one seed, and loss:", "", *_budgets(budgets)]
    trials = by_arm(results("cifar_trials"))
    if trials:
        lines += [f"Trials of growth with {BUDGET_EPOCHS} epochs, the same seed:", "", *_arms(trials, "validation")]
    if results("cifar_tuning"):
        lines += [
            "Validation loss by learning rate, the same seed and epochs; each arm takes its best, stacking that of "
            "the model it ends as:",
            "",
            *_rates(),
        ]
    arms = by_arm(results("cifar"))
    if arms:
        body = [
            (first.name, second.name, *difference(*pair), drawn_anew(*pair))
            for first, second in PAIRS
            if len(pair := [arms[each.name] for each in (first, second) if each.name in arms]) == 2
        ]
        header = ("arm", "minus", "seeds", "accuracy (points)", "loss", "accuracy, drawn anew")
        lines += [
            f"With {BUDGET_EPOCHS} epochs, other seeds, on the test images:",
            "",
            *_arms(arms, "test"),
            *table(header, body),
            *_reached(arms),
        ]
    return lines


def _rates() -> list[str]:
    """The sweep."""
    rates = (LOWER, RATE, HIGHER)
    body = []
    for name, losses in {found.name: tuned_losses(found) for found, _ in SWEPT}.items():
        body.append((name, *(f"{losses[rate]:.3f}" if rate in losses else "–" for rate in rates)))
    return table(("arm", *(f"{rate:g}" for rate in rates)), body)


def reached(row: dict[str, Any], target: float) -> dict[str, float] | None:
    """
    What a run has spent when its validation loss is `target`: the share of its budget, and multiply-accumulates.
    Linear between the points of its curve; None if it never is that low.
    """
    before: dict[str, float] | None = None
    for point in row["curve"]:
        if point["loss"] <= target:
            if before is None:
                return {name: point[name] for name in ("share", "macs")}
            part = (before["loss"] - target) / (before["loss"] - point["loss"])
            return {name: before[name] + part * (point[name] - before[name]) for name in ("share", "macs")}
        before = point
    return None


def _reached(arms: dict[str, Rows]) -> list[str]:
    """What the arms spend until they have the validation loss with which the best uniform model ends."""
    body = []
    budgets = {arm.name: arm.budget for arm in FINAL}
    ends = {row["seed"]: row for row in arms.get(MIDDLE.name, [])}
    for name in [name for name in arms if name != MIDDLE.name]:
        common = [row for row in arms[name] if row["seed"] in ends]
        found = {row["seed"]: reached(row, ends[row["seed"]]["validation"]["loss"]) for row in common}
        known = {seed: point for seed, point in found.items() if point is not None}
        seconds = [point["share"] * budgets[name] / MIDDLE.budget for point in known.values()]
        macs = [point["macs"] / ends[seed]["total_macs"] for seed, point in known.items()]
        body.append((name, f"{len(known)} of {len(common)}", text(seconds), text(macs)))
    header = ("arm", "seeds", "share of the seconds", "of its multiply-accumulates")
    return [
        f"What is spent until the validation loss is that with which {MIDDLE.name} ends, linear between the points "
        "of each curve, over the seeds that get there (each on its own cosine, which falls lowest at the end):",
        "",
        *table(header, body),
    ]


def _budgets(budgets: dict[str, Rows]) -> list[str]:
    """Uniform models by budget, start and learning rate."""
    conditions = list(dict.fromkeys((epochs, spread, rate) for epochs, spread, rate, _ in TRIED))
    widths = sorted({width for *_, width in TRIED})

    def shown(condition: tuple[int, float, float], width: int) -> str:
        rows = [row["validation"] for row in budgets.get(budget_name(*condition, width), [])]
        return ", ".join(f"{100 * row['accuracy']:.1f} ({row['loss']:.3f})" for row in rows) or "–"

    body = [
        (*(f"{value:g}" for value in condition), *(shown(condition, width) for width in widths))
        for condition in conditions
    ]
    return table(("epochs", "weights from", "rate", *(f"MLPs {width} wide" for width in widths)), body)


def _arms(arms: dict[str, Rows], split: str) -> list[str]:
    """What each arm ends with."""
    body = [
        (
            name,
            str(len(rows)),
            f"{np.mean([row['start']['parameters'] for row in rows]):,.0f}",
            f"{np.mean([row['parameters'] for row in rows]):,.0f}",
            f"{np.mean([row['steps'] for row in rows]):,.0f}",
            text([row["pace"] for row in rows]),
            f"{np.mean([row['growth_seconds'] for row in rows]):.0f}",
            f"{np.mean([row['seconds'] for row in rows]):.0f}",
            text(list(measured(rows, split, "accuracy").values()), 100),
            text(list(measured(rows, split, "loss").values()), digits=3),
        )
        for name, rows in arms.items()
    ]
    header = ("arm", "seeds", "parameters", "at the end", "steps", "a step at the end", "seconds growing", "seconds")
    return table((*header, "accuracy (%)", "loss"), body)
