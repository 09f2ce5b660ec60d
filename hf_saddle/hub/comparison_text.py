"""A comparison as tables of Markdown, for the terminal, the documentation and the card."""

from collections.abc import Sequence

from .comparison import ARMS, AT_THE_START, COSTS, NONE, OF_GROWTH, RANDOM, Comparison
from .escape import markdown, plain, quantity
from .intervals import mean_interval
from .measured import told_of_growth


def comparison_text(comparison: Comparison) -> str:
    """Means of the arms, paired differences with their intervals, and what follows from them, as Markdown."""
    seeds = len(comparison.seeds)
    judged = [f"{markdown(comparison.split)} {markdown(metric)}" for metric in comparison.metrics]
    costs = ["seconds"] if comparison.cost == "seconds" else [COSTS[comparison.cost], "seconds"]
    head = ["arm", "steps", "parameters", *costs, "of it growing", *judged]
    tables = [_table(head, [_row(comparison, arm) for arm in ARMS])]
    rows = [
        [
            f"growth − {against}",
            *(difference(comparison, metric, against) for metric in comparison.metrics),
            *(comparison.verdict(metric, against) for metric in comparison.metrics),
        ]
        for against in (NONE, RANDOM)
    ]
    verdicts = ["verdict"] if len(judged) == 1 else [f"by {markdown(metric)}" for metric in comparison.metrics]
    tables.append(_table(["difference", *judged, *verdicts], rows))
    told = (
        "intervals are 95 % of Student's t, and one that holds 0 shows nothing"
        if seeds > 1
        else "and a single one has no interval and shows nothing"
    )
    equal = f"{seeds} seed{'s' * (seeds > 1)}, equal {COSTS[comparison.cost]}"
    told = f"{equal}; differences are taken within a seed, {told}."
    return "\n\n".join([*tables, told, comparison.answer()])


def difference(comparison: Comparison, metric: str, against: str) -> str:
    """Growth minus another arm, as `+0.0123 ± 0.0045`."""
    mean, half = mean_interval(comparison.differences(metric, against))
    return f"{mean:+.4f}" if half is None else f"{mean:+.4f} ± {half:.4f}"


def settings_text(comparison: Comparison) -> str:
    """The settings, and what a reader needs of the conditions, in one line."""
    told = {name: value for name, value in comparison.conditions.items() if not name.endswith(AT_THE_START)}
    growth = {name.removeprefix(OF_GROWTH): told.pop(name) for name in [*told] if name.startswith(OF_GROWTH)}
    told |= {f"{OF_GROWTH}{name}": value for name, value in told_of_growth(growth).items()}
    known = {name: value for name, value in told.items() if value is not None}
    return ", ".join(f"{plain(name)} {plain(value)}" for name, value in (comparison.settings | known).items())


def _row(comparison: Comparison, arm: str) -> list[str]:
    runs = comparison.of(arm)

    def mean(values: Sequence[float]) -> float:
        return mean_interval(values)[0]

    spent, seconds = mean([run.spent for run in runs]), mean([run.seconds for run in runs])
    amount = quantity(round(spent)) if comparison.cost == "macs" else f"{spent:.1f}"
    paid = [f"{seconds:.1f}"] if comparison.cost == "seconds" else [amount, f"{seconds:.1f}"]
    share = mean([run.growth_cost / run.spent if run.spent else 0.0 for run in runs])
    return [
        arm,
        f"{mean([run.steps for run in runs]):,.0f}",
        f"{mean([run.parameters for run in runs]):,.0f}",
        *paid,
        f"{100 * share:.1f} %" if share else "–",
        *(f"{mean([run.results[metric] for run in runs]):.4f}" for metric in comparison.metrics),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    lines[1] = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
