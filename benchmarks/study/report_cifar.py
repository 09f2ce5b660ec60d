"""The report's section on CIFAR-100: at which budget the larger model wins, and growth there, in equal seconds."""

import numpy as np

from .cifar_arms import BUDGET_EPOCHS, GROWING, SIZE, TRIED, UNIFORM, WIDENED, budget_name
from .files import results
from .report_seconds import drawn_anew
from .statistics import text
from .tables import Rows, by_arm, difference, measured, table


def cifar() -> list[str]:
    """Budgets, trials of growth, the arms, and their paired differences."""
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
    arms = by_arm(results("cifar"))
    if arms:
        small, large = (arm.name for arm in UNIFORM)
        pairs = [(GROWING.name, large), (GROWING.name, small), (WIDENED.name, large), (WIDENED.name, small)]
        body = [
            (first, second, *difference(arms[first], arms[second]), drawn_anew(arms[first], arms[second]))
            for first, second in (*pairs, (large, small))
            if first in arms and second in arms
        ]
        lines += [f"With {BUDGET_EPOCHS} epochs, other seeds, on the test images:", "", *_arms(arms, "test")]
        header = ("arm", "minus", "seeds", "accuracy (points)", "loss", "accuracy, drawn anew")
        lines += table(header, body)
    return lines


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
