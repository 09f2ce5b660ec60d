"""Where neurons want more depth or width: the analysis of a model on a few batches, at the cost of a training step."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .capture.capture import capture
from .capture.choice import add_reason, choose, nothing_to_analyse
from .capture.described import describe
from .capture.undisturbed import undisturbed
from .loss import Loss
from .ranks import Ranks
from .report import CurvatureReport, LayerCurvature
from .settings import Settings, SolverOptions, kind_of
from .solving.controls import CONTROLS
from .solving.solve import solve_control, solve_curvature


logger = logging.getLogger(__name__)


def analyze_curvature(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: str | Sequence[str] = "depth",
    *,
    loss: Loss | None = None,
    linears: Sequence[str] | None = None,
    step_size: float = 0.1,
    whiten: bool = False,
    significance: float = 2.0,
    unit_activation: nn.Module | str = "gelu",
    solver: SolverOptions | None = None,
    max_tokens: int = 4096,
    seed: int = 0,
    distributed: bool = False,
    group: "dist.ProcessGroup | None" = None,
) -> CurvatureReport:
    """
    Analyse where the neurons of a model want more depth or width.

    For every neuron of the chosen affine layers (`nn.Linear`, transformers' `Conv1D`, `nn.Conv2d`) this finds an
    extreme eigenpair of `S = Σ_t ∂L/∂h φ''(z) x̂ x̂ᵀ` (width; arXiv 1910.02366) or of `D = Σ_t ∂L/∂z x̂ x̂ᵀ` (depth),
    judges it on samples it was not fitted to and predicts what growing along it would gain. Tokens are positions of a
    sequence or of an image; a convolution's `x` is the patch that its neuron reads there, of its group of channels. A
    batch normalisation between layer and activation counts as a part of the neuron. Gated neurons `h = φ(g) u` of
    the architectures in `hf_saddle.models.families` have `S = Σ_t ∂L/∂h [[φ''(g) u, φ'(g)], [φ'(g), 0]] ⊗ x̂ x̂ᵀ`, and
    directions for the rows of both layers.

    The loss is the mean over all samples of all batches. Padded positions (`attention_mask`, `decoder_attention_mask`)
    are left out of step sizes and whitening, and of `S` and `D` where the loss does not depend on them. The model runs
    in eval mode; its parameters, gradients, modes, hooks and the states of the random generators are as before when
    this returns or raises. A negative eigenvalue of `S` does not say that the network sits at a saddle: the split
    creates one.

    Args:
        model (`nn.Module`): The model. A `DistributedDataParallel` wrapper is taken off.
        batches (`Iterable`): The probe batches. All are held in memory. The leading dimension of the first tensor in a
            batch is its number of samples; sequences may be padded to another length in each batch.
        criterion (`str` or `Sequence[str]`, *optional*, defaults to `"depth"`): `"width"`, `"depth"` or one of the
            controls `"random"`, `"grad_norm"`, `"gradmax"`, `"paper_score"`; see [`LayerCurvature`].
        loss (`Callable`, *optional*): Maps model and batch to the mean loss over the samples of the batch. Defaults to
            `model(**batch).loss`. Where that is a mean over the tokens that have a label, batches with more of these
            count for more, so that the loss is the mean over all such tokens of all batches, however they are cut.
        linears (`Sequence[str]`, *optional*): Names of affine layers. Defaults to those that can grow by the
            description of the architecture, or to all of another model, but for those whose parameters are all
            frozen. Inputs must be grouped by sample along their first dimension.
        step_size (`float`, *optional*, defaults to 0.1): The step `ρ` along a direction, relative to the norm
            of the neuron's row `[w_i; b_i]`.
        whiten (`bool`, *optional*, defaults to `False`): Take the extremes of the curvature per change of the
            pre-activation, not of the weights: the directions `v` are generalised eigenvectors `S v = λ M v` with the
            inputs' second moments `M`, and the step is relative to the pre-activation, not to the row. Their lengths
            are 1, and `eigenvalue` is `vᵀ S v`. Controls have the directions that they have without.
        significance (`float`, *optional*, defaults to 2.0): How many standard errors a held-out eigenvalue must
            exceed.
        unit_activation (`nn.Module` or `str`, *optional*, defaults to `"gelu"`): Activation of new depth units, for
            `gain`: a module, or a name in `ACTIVATIONS`.
        solver (`SolverOptions`, *optional*): Work of the eigensolver.
        max_tokens (`int`, *optional*, defaults to 4096): Number of tokens that are used per layer, all ranks and
            batches together: drawn by importance, and weighted such that the estimates stay unbiased. More tokens cost
            time and memory in proportion, and lower the noise of the estimates. A convolution's patches are unfolded
            for these only; of patches of more than 256 entries or kernels of more than nine, proportionally fewer are
            kept.
        seed (`int`, *optional*, defaults to 0): Seed of folds, start vectors and drawn tokens.
        distributed (`bool`, *optional*, defaults to `False`): Whether every rank calls this with batches of its own,
            to obtain what one process obtains on all of them.
        group (`torch.distributed.ProcessGroup`, *optional*): The ranks, by default all.

    Returns:
        `CurvatureReport`: The same on every rank, but for `seconds`.

    Raises:
        ValueError: If an argument is out of range, the probe has fewer than four samples, a loss, activation or
            gradient is not finite, or no layer can be analysed.
        RuntimeError: If another rank failed in collecting its batches or in a forward or backward pass.

    Example:

    ```python
    >>> import torch
    >>> from torch import nn
    >>> from hf_saddle.curvature import analyze_curvature

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    >>> batch = {"x": torch.randn(32, 8), "y": torch.randint(2, (32,))}
    >>> def loss(model, batch):
    ...     return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
    >>> report = analyze_curvature(model, [batch], "width", loss=loss)
    >>> report["0", "width"].direction.shape
    torch.Size([16, 9])

    ```
    """
    settings = Settings(
        criteria=(criterion,) if isinstance(criterion, str) else tuple(criterion),
        solver=solver or SolverOptions(),
        max_tokens=max_tokens,
        seed=seed,
        significance=significance,
        whiten=whiten,
        step_size=step_size,
        unit_activation=unit_activation,
    )
    return analyze(model, batches, loss=loss, linears=linears, settings=settings, ranks=Ranks(distributed, group))


def analyze(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss | None,
    linears: Sequence[str] | None,
    settings: Settings,
    ranks: Ranks,
) -> CurvatureReport:
    """What [`analyze_curvature`] does, with its options as one."""
    started, criteria = time.perf_counter(), settings.criteria
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    described = describe(model)
    chosen, skipped = choose(model, linears, described)
    if not chosen:
        raise nothing_to_analyse(criteria, skipped)
    found: list[LayerCurvature] = []
    with undisturbed(model):
        captured = capture(model, chosen, batches, loss, settings=settings, ranks=ranks, described=described)
        skipped |= captured.skipped
        for layer in captured:
            with torch.autocast(layer.module.weight.device.type, enabled=False):
                for name in (name for name in criteria if kind_of(name) == layer.kind):
                    solve = solve_control if name in CONTROLS else solve_curvature
                    result = solve(layer, name, settings=settings, samples=captured.samples, ranks=ranks)
                    if isinstance(result, str):
                        add_reason(skipped, layer.linear, result)
                    else:
                        found.append(result)
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    found.sort(key=lambda layer: (order[layer.linear], criteria.index(layer.criterion)))
    for name, reason in skipped.items():
        logger.info("No curvature for %s: %s.", name, reason)
    if not found:
        raise nothing_to_analyse(criteria, skipped)
    seconds = time.perf_counter() - started
    return CurvatureReport(
        tuple(found), captured.samples.total, captured.tokens, captured.loss, seconds, settings.seed, skipped
    )
