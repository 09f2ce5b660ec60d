"""Compare arms: `python benchmarks/paper_scale/compare.py outputs/*` prints a Markdown table, one line per arm.

Accuracies are those after the last epoch, as mean ± half of the 95 % interval over seeds (Student's t); the best epoch
is chosen on the images that it is reported on, as the paper's code does, and stands apart.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from arms import ARMS
from results import RESULT_NAME
from scipy.stats import t


COLUMNS = [
    "arm",
    "seeds",
    "top-1",
    "top-5",
    "best epoch",
    "events",
    "parameters",
    "MACs/image",
    "training FLOPs",
    "hours",
]


def with_interval(values: Sequence[float]) -> str:
    """A mean in percent, with its interval where there are at least two values."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.2%}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2%} ± {half:.2%}"


def table(results: Sequence[dict]) -> str:
    """
    Results as a Markdown table.

    Raises:
        ValueError: If they are of different data sets, numbers of epochs or batch sizes, or a seed comes twice.
    """
    for name in ("dataset", "epochs", "batch"):
        values = {result[name] for result in results}
        if len(values) > 1:
            raise ValueError(f"The results differ in `{name}`, {sorted(values)}: compare like with like.")
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for arm in ARMS:
        runs = [result for result in results if result["arm"] == arm]
        if not runs:
            continue
        if len({run["seed"] for run in runs}) < len(runs):
            raise ValueError(f"The arm {arm!r} has two results of one seed.")
        accuracies = [
            with_interval([run[name] for run in runs]) for name in ("accuracy", "top5_accuracy", "best_accuracy")
        ]
        events = f"{statistics.mean(run['events'] for run in runs):g}"
        parameters, macs, flops, seconds = (
            statistics.mean(run[name] for run in runs) for name in ("parameters", "macs", "training_flops", "seconds")
        )
        sizes = [f"{parameters:,.0f}", f"{macs:,.0f}", f"{flops:.3g}", f"{seconds / 3600:.2f}"]
        lines.append([arm, str(len(runs)), *accuracies, events, *sizes])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="Output folders of train.py.")
    folders = parser.parse_args().folders
    print(table([json.loads((folder / RESULT_NAME).read_text()) for folder in folders]))


if __name__ == "__main__":
    main()
