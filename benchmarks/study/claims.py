"""What is claimed of growth, and the verdict that the runs give: shown, refuted, level, or not shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from . import cifar_arms
from .expansion import EXPANDED, FULL, GROWN, LORA, RANDOM
from .experiments import DOUBLED, best_static, best_uniform
from .files import results
from .language_arms import GROWING, LATER, SILENT, SOONER, STACKED, UNIFORM
from .statistics import paired, text
from .tables import by_arm, measured, table


LEVEL = 0.05  # of the whole family of claims (Holm)
# Within which two arms count as level: points of accuracy, and nats.
MARGINS = {"accuracy": 0.5, "loss": 0.01, "forgetting": 0.01}
UNITS = {"accuracy": "points", "loss": "nats", "forgetting": "nats"}
FEWEST_SEEDS = 10


@dataclass(frozen=True)
class Claim:
    """
    An arm is said to end with a better test result than another one of the same experiment or of `other`: a higher
    accuracy, or where `figure` says so a lower loss, or less forgetting.
    """

    text: str
    experiment: str
    arm: str
    control: str
    other: str | None = None
    figure: str = "accuracy"


DEFAULT, SEARCHED = "default", "zero gain, whitened, line search"
RANKED, RANKED_QV = "LoRA, ranks by curvature", "LoRA on q and v, ranks by curvature"
TODAY, MATCHED = "pursuit, natural step", "random in the same linears"
CLAIMS = (
    Claim("growth better than random growth anywhere", "confirmation", DEFAULT, "zero gain, random"),
    Claim(
        "growth better than random growth in the same linears",
        "matched",
        DEFAULT,
        "default, random in the same linears",
    ),
    Claim(
        "growth better than random growth in the same linears, by today's default",
        "choice",
        TODAY,
        f"{TODAY}, {MATCHED}",
    ),
    Claim("growth better by today's default than by that of 0.2", "choice", TODAY, "ranked, at rest"),
    Claim("growth better than random growth in v and o", "matched", DEFAULT, "zero gain, random in v and o"),
    Claim(
        "growth better than uniform of 90 % in equal seconds",
        "matched",
        DEFAULT,
        "uniform, 90 %, the seconds of default",
    ),
    Claim("growth better than uniform of 90 % at equal MACs", "headline", SEARCHED, "uniform, 90 %"),
    Claim(
        "growth better than the shape it ends with, from scratch", "headline", SEARCHED, "one shot", other="one_shot"
    ),
    Claim("growth better than the small model at equal MACs", "confirmation", DEFAULT, "uniform, small"),
    *(
        Claim(f"LoRA with ranks by curvature better than {what}{where}", experiment, RANKED, control)
        for experiment, where in (("finetuning", ""), ("glosses", ", on definitions"))
        for what, control in (
            ("with one rank", "LoRA on all linears"),
            ("in other linears", f"{RANKED}, exchanged"),
            ("AdaLoRA", "AdaLoRA"),
            ("on q and v", "LoRA on q and v"),
        )
    ),
    Claim("LoRA with ranks by curvature better than by gradient", "finetuning", RANKED, "LoRA, ranks by gradient"),
    Claim("LoRA on q and v better with ranks by curvature", "finetuning", RANKED_QV, "LoRA on q and v"),
    *(
        Claim(f"{name} better than the best uniform model in equal seconds", "seconds", name, best_uniform().name)
        for name in ("growth", "growth, per second", "growth, per second, once")
    ),
    Claim(
        "growth, per second, better than random growth in the same linears",
        "seconds",
        "growth, per second",
        "growth, per second, random in the same linears",
    ),
    Claim("growth better than the best static shape of a search", "seconds", "growth", best_static().name),
    Claim("growth better than GroMo's in equal seconds", "seconds", "growth", "gromo"),
    *(
        Claim(f"{name} better than the best uniform model in equal seconds", "seconds", name, best_uniform().name)
        for name in ("growth, width", "uneven halves", DOUBLED)
    ),
    Claim(
        "growth, width, better than random splits",
        "seconds",
        "growth, width",
        "growth, width, random in the same linears",
    ),
    *(
        Claim(f"{what} better than uniform {when}", "language", arm.name, UNIFORM.name, figure="loss")
        for what, when, arm in (
            ("stacking a language model", "in equal seconds", STACKED),
            ("silent copies in a language model", "in equal seconds", SILENT),
            ("silent copies at 40 % in a language model", "in equal seconds", LATER),
            ("stacking a language model", "with 70 % of its seconds", SOONER),
            ("growth of a language model", "in equal seconds", GROWING),
        )
    ),
    *(
        Claim(f"{what} better than the best uniform model on CIFAR-100", "cifar", arm.name, cifar_arms.MIDDLE.name)
        for what, arm in (
            ("stacking", cifar_arms.STACKED),
            ("stacking with 70 % of the seconds", cifar_arms.SOONER),
            ("doubling by silent copies", cifar_arms.SILENT),
            ("doubling by silent copies with 70 % of the seconds", cifar_arms.SILENT_SOONER),
            ("growth", cifar_arms.GROWING),
            ("growth, width", cifar_arms.WIDENED),
            ("growth of blocks, heads and neurons", cifar_arms.ANY),
        )
    ),
    *(
        Claim(f"{what} better than a uniform model with {rest} on CIFAR-100", "cifar", arm.name, other.name)
        for what, arm, rest, other in (
            ("stacking", cifar_arms.STACKED, "3 blocks", cifar_arms.THREE),
            ("doubling by silent copies", cifar_arms.SILENT, "3 blocks", cifar_arms.THREE),
            ("stacking", cifar_arms.STACKED, "MLPs 128 wide", cifar_arms.WIDER),
            ("doubling by silent copies", cifar_arms.SILENT, "MLPs 128 wide", cifar_arms.WIDER),
        )
    ),
    Claim(
        "growth, width, better than random splits on CIFAR-100",
        "cifar",
        cifar_arms.WIDENED.name,
        cifar_arms.RANDOM.name,
    ),
    Claim("new units alone forget less than full fine-tuning", "expansion", GROWN, FULL, figure="forgetting"),
    *(
        Claim(f"new units alone learn new text better than {what}", "expansion", GROWN, arm, figure="loss")
        for what, arm in (("new blocks", EXPANDED), ("random ones in the same linears", RANDOM), ("LoRA", LORA))
    ),
)


def differences(claim: Claim) -> list[float]:
    """By how much the arm is better, in points or nats, over the seeds that both arms have."""
    arms = by_arm(results(claim.experiment))
    others = arms if claim.other is None else by_arm(results(claim.other))
    first, second = (
        measured(rows.get(name, []), "test", claim.figure)
        for rows, name in ((arms, claim.arm), (others, claim.control))
    )
    scale = 100 if claim.figure == "accuracy" else -1
    return [scale * value for value in paired(first, second)]


def adjusted(values: Sequence[float]) -> list[float]:
    """Holm's adjustment of the p-values of a family."""
    order = np.argsort(values)
    result, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        result[index] = largest
    return result


def level(values: Sequence[float], margin: float) -> float:
    """The p-value of two one-sided tests that the mean lies within `margin` of 0."""
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    return float(max(above, below))


def verdict(values: Sequence[float], p_value: float, figure: str = "accuracy") -> str:
    """What differences over seeds say of a claim, given its adjusted two-sided p-value."""
    if len(values) < FEWEST_SEEDS:
        return f"not shown (fewer than {FEWEST_SEEDS} seeds)"
    if p_value < LEVEL:
        return "shown" if np.mean(values) > 0 else "refuted"
    margin = MARGINS[figure]
    return f"level (within {margin} {UNITS[figure]})" if level(values, margin) < LEVEL else "not shown"


def claims() -> list[str]:
    """The verdict of every claim."""
    found = [(claim, values) for claim in CLAIMS if len(values := differences(claim)) > 1]
    p_values = adjusted([float(stats.ttest_1samp(values, 0.0).pvalue) for _, values in found])
    body = []
    for (claim, values), p in zip(found, p_values, strict=True):
        arms = f"`{claim.arm}` − `{claim.control}`"
        digits = 2 if claim.figure == "accuracy" else 3
        by = f"{text(values, digits=digits, sign=True)} {UNITS[claim.figure]}"
        body.append((claim.text, arms, str(len(values)), by, f"{p:.2g}", verdict(values, p, claim.figure)))
    return [
        "## Claims",
        "",
        "Points of test accuracy, or nats of test loss or forgetting, by which the first is better, paired by seed; "
        f"p-values of Student's t, adjusted by Holm's method. A claim is shown or refuted below {LEVEL} with at least "
        f"{FEWEST_SEEDS} seeds; two arms are level where two one-sided tests put the difference within "
        f"{MARGINS['accuracy']} points or {MARGINS['loss']} nats.",
        "",
        *table(("claim", "difference", "seeds", "better by", "p", "verdict"), body),
    ]
