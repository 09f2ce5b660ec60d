"""The analysis where there is nothing to be found: how many neurons it selects all the same."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from .analyze import analyze
from .loss import Loss
from .ranks import Ranks
from .report import NullModel, nominal_rate
from .settings import Settings, SolverOptions


def check_null_model(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: str = "depth",
    *,
    loss: Loss | None = None,
    linears: Sequence[str] | None = None,
    solver: SolverOptions | None = None,
    distributed: bool = False,
    group: "dist.ProcessGroup | None" = None,
    **options: Any,
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
    settings = Settings(criteria=(criterion,), solver=solver or SolverOptions(), flip=True, **options)
    report = analyze(model, batches, loss=loss, linears=linears, settings=settings, ranks=Ranks(distributed, group))
    return NullModel(
        selected=sum(layer.candidates for layer in report),
        neurons=sum(layer.neurons for layer in report),
        nominal=nominal_rate(criterion, settings.significance),
        report=report,
    )
