"""The analysis where there is nothing to be found: how many neurons it selects all the same."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from .analyze import analyze
from .eigenpairs import SolverOptions
from .loss import Loss
from .ranks import Ranks
from .report import NullModel, nominal_rate
from .settings import Settings


def check_null_model(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: str = "depth",
    *,
    loss: Loss | None = None,
    linears: Sequence[str] | None = None,
    whiten: bool = False,
    significance: float = 2.0,
    solver: SolverOptions | None = None,
    max_tokens: int = 4096,
    seed: int = 0,
    distributed: bool = False,
    group: "dist.ProcessGroup | None" = None,
) -> NullModel:
    """
    Run the analysis where there is nothing to be found, to see how many neurons it selects all the same.

    The coefficients of every sample get a common random sign. That leaves their sizes and the correlation of a
    sample's tokens as they are, but makes every expected curvature zero. (Shuffling them over tokens would keep their
    mean, which is a curvature, and break the correlation.) Arguments are those of [`analyze_curvature`].

    Returns:
        `NullModel`: Its `fraction` should not exceed its `nominal` rate by more than chance.
    """
    if criterion not in ("width", "depth"):
        raise ValueError(f'The null model is for the criteria "width" and "depth", got {criterion!r}.')
    settings = Settings(
        criteria=(criterion,),
        solver=solver or SolverOptions(),
        max_tokens=max_tokens,
        seed=seed,
        significance=significance,
        whiten=whiten,
        flip=True,
    )
    report = analyze(model, batches, loss=loss, linears=linears, settings=settings, ranks=Ranks(distributed, group))
    selected = sum(layer.candidates for layer in report)
    return NullModel(
        selected=selected,
        neurons=sum(layer.neurons for layer in report),
        nominal=nominal_rate(criterion, significance),
        report=report,
    )
