"""Markdown tables of runs, by arm."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from .statistics import interval, paired, text


Rows = list[dict[str, Any]]


def by_arm(rows: Rows) -> dict[str, Rows]:
    """The runs of every arm, in the order of the first ones."""
    found: dict[str, Rows] = defaultdict(list)
    for row in rows:
        found[row["arm"]].append(row)
    return dict(found)


def measured(rows: Rows, split: str, name: str) -> dict[int, Any]:
    """A figure of every seed."""
    return {row["seed"]: row[split][name] for row in rows}


def table(header: Iterable[str], body: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    lines = [tuple(header), *(tuple(row) for row in body)]
    lines.insert(1, tuple("---" for _ in lines[0]))
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def difference(first: Rows, second: Rows) -> tuple[str, str, str]:
    """Number of seeds that both arms have, and the differences there in points of test accuracy and in test loss."""
    points, losses = (
        paired(*(measured(rows, "test", figure) for rows in (first, second))) for figure in ("accuracy", "loss")
    )
    return str(len(points)), text(points, 100, sign=True), text(losses, digits=3, sign=True)


def comparison(arms: dict[str, Rows], split: str = "test") -> list[str]:
    """A table of arms, the best first, against the two uniform models."""
    large, small = (measured(arms.get(name, []), split, "accuracy") for name in ("uniform, large", "uniform, small"))
    body = []
    for name, rows in sorted(arms.items(), key=lambda item: -interval([r[split]["accuracy"] for r in item[1]])[0]):
        accuracy, loss = (measured(rows, split, figure) for figure in ("accuracy", "loss"))
        growth = float(np.mean([row["growth_macs"] / row["total_macs"] for row in rows]))
        time = float(np.mean([row["growth_seconds"] / row["seconds"] for row in rows]))
        body.append(
            (
                name,
                str(len(rows)),
                f"{np.mean([row['parameters'] for row in rows]):,.0f}",
                f"{np.mean([row['steps'] for row in rows]):,.0f}",
                f"{np.mean([row['total_macs'] for row in rows]) / 1e9:,.0f}",
                f"{np.mean([row['seconds'] for row in rows]):.1f}",
                f"{100 * growth:.1f} %" if growth else "–",
                f"{100 * time:.1f} %" if growth else "–",
                text(list(accuracy.values()), 100),
                text(list(loss.values()), digits=3),
                text(paired(accuracy, large), 100, sign=True),
                text(paired(accuracy, small), 100, sign=True),
            )
        )
    header = (
        "arm",
        "seeds",
        "parameters",
        "steps",
        "10⁹ MACs",
        "seconds",
        "of the MACs growing",
        "of the seconds growing",
    )
    return table((*header, "accuracy (%)", "loss", "against large", "against small"), body)
