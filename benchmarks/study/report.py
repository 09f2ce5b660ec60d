"""Tables and pictures of what the runs found.

    python -m benchmarks.study.report      # writes benchmarks/study/results/REPORT.md and its pictures

Intervals are 95 % of Student's t over seeds; differences are paired by seed.
"""

from collections.abc import Callable

from .claims import claims
from .experiments import (
    BEST,
    CONTROL,
    DIGITS_RATE,
    LARGE,
    LARGE_PARAMETERS,
    LEARNING_RATE,
    SIZES,
    SMALL,
    STACKED,
    STEPS,
    TARGET,
    UNDIRECTED,
)
from .files import RESULTS, results
from .pictures import curves
from .report_cifar import cifar
from .report_events import event, neurons, rankings
from .report_expansion import expansion
from .report_finetuning import finetuning
from .report_language import language
from .report_seconds import seconds
from .statistics import text
from .tables import by_arm, comparison, difference, measured, table


UNIFORM_NAMES = ("uniform, small", "uniform, 90 %", "uniform, large")
TWINS = (
    (BEST, CONTROL),
    (UNDIRECTED, CONTROL),
    ("zero gain, line search", CONTROL),
    (BEST, UNDIRECTED),
    (BEST, "zero gain, line search"),
    (BEST, "uniform, small"),
    (BEST, "uniform, 90 %"),
    (BEST, "uniform, large"),
    (BEST, "one shot"),
    ("default", "zero gain, random"),
    ("default", "uniform, small"),
    ("default", "uniform, large"),
    ("default", "zero gain, whitened"),
    ("zero gain, whitened", "zero gain, random"),
    ("zero gain, whitened", CONTROL),
    ("zero gain", "zero gain, random"),
    (BEST, "zero gain, whitened"),
    ("split, whitened, line search", "split, random, line search"),
    ("split, line search", "split, random, line search"),
    ("split, whitened, line search", "split, line search"),
    ("split", "split, random"),
    ("split, line search", "split"),
    ("split, whitened, line search", BEST),
    ("auto, whitened, line search", BEST),
    ("auto, whitened, line search", CONTROL),
    ("auto, whitened, line search", "auto, line search"),
    ("residual pair, paper score", CONTROL),
)


def tuning() -> list[str]:
    """Which learning rate each kind of arm wants."""
    head = f"Validation accuracy (%) of one seed by peak learning rate; all other experiments use {LEARNING_RATE:g}."
    return ["## Learning rates", "", head, "", *_rates("tuning")]


def _rates(experiment: str) -> list[str]:
    """Validation accuracy by learning rate."""
    arms = by_arm(results(experiment))
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
    return table(("arm", *(f"{rate:g}" for rate in rates)), body)


def scratch() -> list[str]:
    """All arms from scratch, at equal compute and at equal steps."""
    names = ("headline", "confirmation", "matched", "longer", "steps")
    head, again, matched, longer, steps = (by_arm(results(name)) for name in names)
    arms = head | by_arm(results("choices") + results("one_shot"))
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
        ("### Some of these again, with other seeds", again),
        ("### The same places, and the same seconds", matched),
        (f"### Four times the compute ({4 * STEPS:,} steps of the large model)", longer),
        ("### Growth early, equal steps", steps),
    ):
        if group:
            lines += ["", title, "", *comparison(group)]
    lines += ["### Twins that differ in one choice", ""]
    body = []
    for when, found in (
        ("early", arms),
        ("early, other seeds", again),
        ("early, all seeds", {name: head.get(name, []) + rows for name, rows in again.items()}),
        ("early, four times the compute", longer),
        ("early, equal steps", steps),
    ):
        for first, second in TWINS:
            if first in found and second in found:
                body.append((when, first, second, *difference(found[first], found[second])))
    lines += table(("growth", "arm", "minus", "seeds", "accuracy (points)", "loss"), body)
    for file, found in (("curves.png", head), ("curves_longer.png", longer)):
        if found:
            lines += [f"![Validation accuracy over compute]({file})", ""]
            curves(RESULTS / file, found)
    return lines


def timing() -> list[str]:
    """Number and moments of events."""
    reference, arms = by_arm(results("headline")), by_arm(results("timing"))
    if not arms:
        return []
    seeds = {row["seed"] for rows in arms.values() for row in rows}
    shown = {
        name: [row for row in reference[name] if row["seed"] in seeds] for name in ("uniform, large", "uniform, small")
    }
    shown["three events at 10, 25 and 40 %"] = [row for row in reference[BEST] if row["seed"] in seeds]
    shown["three events at 10, 25 and 40 %, random"] = [row for row in reference[CONTROL] if row["seed"] in seeds]
    return [
        "## When, and how often",
        "",
        f"The arm `{BEST}`, and `{CONTROL}` as `random`, on the validation split; events by share of the compute.",
        "",
        *comparison(shown | arms, "validation"),
    ]


def intervals_and_budgets() -> list[str]:
    """The paper's intervals, and other final sizes."""
    uniform = {name: rows for name, rows in by_arm(results("headline")).items() if name in UNIFORM_NAMES}
    lines = []
    for title, head, name in (
        (
            "Intervals",
            "The default options on the validation split; events from epoch 50 to 290 of 300.",
            "intervals",
        ),
        ("Budgets", "Final numbers of parameters, on the validation split.", "budgets"),
    ):
        arms = by_arm(results(name))
        if arms:
            lines += [f"## {title}", "", head, "", *comparison(uniform | arms, "validation")]
    return lines


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


def digits() -> list[str]:
    """The main arms on another task."""
    arms = by_arm(results("digits"))
    if not arms:
        return []
    head = (
        "scikit-learn's digits, half the compute; validation accuracy (%) by peak learning rate, of which the "
        f"other runs use {DIGITS_RATE:g}."
    )
    body = [
        (first, second, *difference(arms[first], arms[second]))
        for first, second in TWINS
        if first in arms and second in arms
    ]
    return [
        "## Another task",
        "",
        head,
        "",
        *_rates("digits_tuning"),
        *comparison(arms),
        *table(("arm", "minus", "seeds", "accuracy (points)", "loss"), body),
    ]


def structures() -> list[str]:
    """Kinds of growth, places of blocks, and the growth that others propose, on digits."""
    default = "pursuit, natural step"
    twins = {
        "kinds": (("neurons, heads and blocks", "neurons"), ("blocks, measured", "blocks, even")),
        "baselines": tuple((default, name) for name in ("uneven splits", *STACKED, *UNIFORM_NAMES)),
    }
    lines = []
    for experiment, pairs in twins.items():
        arms = by_arm(results(experiment))
        body = [
            (first, second, *difference(arms[first], arms[second]))
            for first, second in pairs
            if first in arms and second in arms
        ]
        if body:
            head = ("arm", "minus", "seeds", "accuracy (points)", "loss")
            lines += [f"### {experiment.capitalize()}", "", *comparison(arms), *table(head, body)]
    return ["## Whole structures, on digits", "", *lines] if lines else []


PARTS: tuple[Callable[[], list[str]], ...] = (
    claims,
    tuning,
    scratch,
    event,
    neurons,
    rankings,
    timing,
    intervals_and_budgets,
    sizes,
    digits,
    structures,
    finetuning,
    language,
    expansion,
    seconds,
    cifar,
)


def main() -> None:
    lines = ["# When growing pays: the figures", "", "Made by `python -m benchmarks.study.report`.", ""]
    for part in PARTS:
        lines += part()
    (RESULTS / "REPORT.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
