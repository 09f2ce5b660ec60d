"""The report's section on language models: losses at equal seconds, and how many steps these are."""

import numpy as np

from .files import results
from .language import BATCH, LENGTH, STEPS
from .language_arms import GROWING, LATER, SILENT, SOONER, STACKED, UNIFORM
from .statistics import paired, text
from .tables import by_arm, measured, table


PAIRS = (
    *((arm, UNIFORM) for arm in (STACKED, SILENT, LATER, SOONER, GROWING)),
    *((arm, SILENT) for arm in (STACKED, LATER)),
)


def language() -> list[str]:
    """Learning rates, the arms, and their paired differences."""
    arms = by_arm(results("language"))
    if not arms:
        return []
    rates = [(row["arm"], f"{row['validation']['loss']:.3f}") for row in results("language_tuning")]
    trials = [
        (
            row["arm"],
            f"{row['start']:,}",
            f"{row['parameters']:,}",
            f"{row['steps']:,}",
            f"{row['growth_seconds']:.1f}",
            f"{row['validation']['loss']:.3f}",
        )
        for row in results("language_trials")
    ]
    losses = {name: measured(rows, "test", "loss") for name, rows in arms.items()}
    body = [
        (
            name,
            str(len(rows)),
            f"{np.mean([row['parameters'] for row in rows]):,.0f}",
            f"{np.mean([row['steps'] for row in rows]):,.0f}",
            f"{np.mean([row['seconds'] for row in rows]):.1f}",
            f"{np.mean([row['growth_seconds'] for row in rows]):.2f}",
            text(list(measured(rows, "validation", "loss").values()), digits=3),
            text(list(losses[name].values()), digits=3),
        )
        for name, rows in arms.items()
    ]
    header = ("arm", "seeds", "parameters", "steps", "seconds", "of these growing", "validation loss", "test loss")
    differences = [
        (first.name, second.name, str(len(values)), text(values, digits=3, sign=True))
        for first, second in PAIRS
        if len(values := paired(losses.get(first.name, {}), losses.get(second.name, {}))) > 1
    ]
    return [
        "## Language models, in equal seconds",
        "",
        f"Llamas 64 wide on the modules of Python's standard library, {BATCH} × {LENGTH} tokens a step, in the "
        f"seconds of {STEPS:,} steps of one with 8 blocks; a step of each depth costs what was measured beforehand. "
        "Losses are in nats per token.",
        "",
        *table(("arm, learning rate", "validation loss of one seed"), rates),
        "Trials of growth by curvature to the same size, at the rate of the others, with the same seed:",
        "",
        *table(("trial", "parameters", "grown", "steps", "seconds growing", "validation loss of one seed"), trials),
        *table(header, body),
        *table(("arm", "minus", "seeds", "test loss"), differences),
    ]
