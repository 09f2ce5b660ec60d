"""Pictures of the study: accuracy over compute, and how the lead of an event fades."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np


def curves(file: Path, arms: dict[str, list[dict[str, Any]]]) -> None:
    """Validation accuracy over the share of the compute, with the range over seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for name in (
        "uniform, small",
        "uniform, large",
        "uniform, 90 %",
        "zero gain, whitened, line search",
        "zero gain, line search",
        "zero gain, random, line search",
    ):
        if name in arms:
            curves = np.array([[point["accuracy"] for point in row["curve"]] for row in arms[name]]) * 100
            shares = np.arange(1, curves.shape[1] + 1) / curves.shape[1]
            axes.plot(shares, curves.mean(axis=0), marker="o", label=f"{name} ({len(curves)} seeds)")
            axes.fill_between(shares, curves.min(axis=0), curves.max(axis=0), alpha=0.15)
    axes.set(xlabel="share of the compute", ylabel="validation accuracy (%)")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def fading(file: Path, after: Sequence[int], means: dict[str, list[float]]) -> None:
    """Mean validation loss of branches minus that of the branch without growth."""
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for name in (
        "split, whitened, line search",
        "split, random, line search",
        "zero gain, whitened, line search",
        "zero gain, line search",
        "zero gain, random directions, line search",
        "zero gain, random, line search",
        "residual pair, paper score",
    ):
        axes.plot(after, means[name], marker="o", label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=10)
    axes.set(xlabel="steps after the event", ylabel="validation loss minus that without growth (10⁻³)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)
