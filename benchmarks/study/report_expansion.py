"""The report's section on expanding a language model: what it learns of the new text, and forgets of the old."""

import numpy as np

from .expansion import EXPANDED, FULL, GROWN, LORA, NEW_BLOCKS, RANDOM, SLOWLY, STEPS
from .expansion_task import BASE_STEPS, BLOCKS
from .files import results
from .language import BATCH, LENGTH
from .statistics import paired, text
from .tables import Rows, by_arm, measured, table


PAIRS = (*((GROWN, arm) for arm in (FULL, SLOWLY, EXPANDED, RANDOM, LORA)), (EXPANDED, SLOWLY), (LORA, SLOWLY))
SUM = "both"  # new loss and forgetting together


def figures(rows: Rows, name: str) -> dict[int, float]:
    """A figure of every seed, on the test split."""
    if name == SUM:
        return {row["seed"]: row["test"]["loss"] + row["test"]["forgetting"] for row in rows}
    return measured(rows, "test", name)


def expansion() -> list[str]:
    """Learning rates, the arms, and their paired differences."""
    arms = by_arm(results("expansion"))
    if not arms:
        return []
    rates = [
        (row["arm"], *(f"{row['validation'][name]:.3f}" for name in ("loss", "old", "forgetting")))
        for row in sorted(results("expansion_tuning"), key=lambda row: (row["arm"].partition(",")[0], row["rate"]))
    ]
    body = [
        (
            name,
            str(len(rows)),
            f"{rows[0]['rate']:g}",
            f"{np.mean([row['trained'] for row in rows]):,.0f}",
            f"{rows[0]['steps']:,}",
            f"{rows[0]['seconds']:.1f}",
            f"{rows[0]['expanding_seconds']:.1f}",
            *(text(list(figures(rows, figure).values()), digits=3) for figure in ("loss", "old", "forgetting", SUM)),
        )
        for name, rows in arms.items()
    ]
    header = ("arm", "seeds", "rate", "trained", "steps", "seconds", "of these expanding", "new text", "old text")
    before = {row["seed"]: row["before"] for rows in arms.values() for row in rows}.values()
    new, old = (text([losses[name] for losses in before], digits=3) for name in ("loss", "old"))
    differences = []
    for first, second in PAIRS:
        found = [
            paired(*(figures(arms.get(name, []), figure) for name in (first, second)))
            for figure in ("loss", "forgetting", SUM)
        ]
        if len(found[0]) > 1:
            shown = (text(values, digits=3, sign=True) for values in found)
            differences.append((first, second, str(len(found[0])), *shown))
    return [
        "## Expansion of a language model, in equal seconds",
        "",
        f"Llamas of {BLOCKS} blocks, 64 wide, trained for {BASE_STEPS:,} steps of {BATCH} × {LENGTH} tokens on the "
        "modules of Python's standard library (old text), go on with the prose of its documentation (new text) for "
        f"the seconds of {STEPS:,} steps of full fine-tuning; expanding counts. {NEW_BLOCKS} blocks, or units or "
        "adapters of as many parameters. Losses are in nats per token; forgetting is by how much that of the old text "
        f"rises. Before: new text {new}, old text {old}.",
        "",
        *table(("arm, learning rate", "new text, one seed, validation", "old text", "forgetting"), rates),
        *table((*header, "forgetting", "new text + forgetting"), body),
        *table(("arm", "minus", "seeds", "new text", "forgetting", "new text + forgetting"), differences),
    ]
