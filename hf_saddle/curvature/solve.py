"""From captured tokens to the curvature of one layer: eigenpairs, step sizes, predicted gains, significance."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..models.layouts import layout_of
from .capture import CapturedLayer
from .controls import CONTROLS, control, weight_gradient
from .eigenpairs import SolverOptions, extreme_pairs
from .inputs import Affine, input_size
from .ranks import Ranks, seed_of
from .recognition import curvature_at_zero
from .report import CurvatureReport, LayerCurvature, check_finite
from .samples import Samples
from .significance import beyond_noise
from .whitening import unit_directions, unwhitened, whitened, whitened_inputs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of an analysis; see [`analyze_curvature`]."""

    solver: SolverOptions
    max_tokens: int
    seed: int
    significance: float
    whiten: bool
    step_size: float = 0.1
    unit_activation: nn.Module | str = "gelu"
    warm_start: CurvatureReport | None = None
    flip: bool = False  # every sample's coefficients get a random sign (null model)


def solve(
    layer: CapturedLayer, criterion: str, *, settings: Settings, samples: Samples, ranks: Ranks
) -> LayerCurvature | str:
    """
    Analyse one layer under one criterion.

    Args:
        layer (`CapturedLayer`): What was captured of it on this rank, of the kind that the criterion needs.
        criterion (`str`): The criterion.
        settings (`Settings`): Options.
        samples (`Samples`): The probe's samples.
        ranks (`Ranks`): Processes over which sums run.

    Returns:
        `LayerCurvature` or the reason (`str`) why there is no curvature to report; the same on all ranks.

    Raises:
        ValueError: If activations or gradients are not finite.
    """
    importance = layer.tokens().importance()
    total = ranks.sum(importance.sum())
    if not bool(torch.isfinite(total) & torch.isfinite(layer.moments.pre_activation).all()):
        raise ValueError(
            f"NaN or infinity in the activations or gradients of {layer.linear}. Check the model's outputs and the "
            "loss on the probe batches; under fp16 autocast use bf16 or no autocast for the analysis."
        )
    if float(total) == 0:
        return "its gradient is zero on the probe samples"
    if layer.moments.constant_inputs():
        return "its input is the same for all tokens"
    generator = torch.Generator().manual_seed(seed_of(settings.seed, layer.linear, criterion))
    if criterion in CONTROLS:
        gradient = weight_gradient(layer.tokens(), samples.total, ranks)
        found = _control(layer, criterion, gradient, step_size=settings.step_size, generator=generator)
    else:
        found = _curvature(
            layer,
            criterion,
            importance=importance,
            settings=settings,
            samples=samples,
            ranks=ranks,
            generator=generator,
        )
    weights = sum(map(input_size, layer.modules))
    biases = sum(module.bias is not None for module in layer.modules)
    if criterion == "width":
        weights, biases = weights + layer.column, biases + layer.norms
    else:
        weights += 1  # the gain
    found["direction"] = found["direction"].t().contiguous()
    fields = {name: value.cpu() for name, value in found.items()}
    return check_finite(
        LayerCurvature(layer.linear, criterion, **fields, cost_parameters=weights + biases, cost_macs=weights)
    )


def _curvature(
    layer: CapturedLayer,
    criterion: str,
    *,
    importance: Tensor,
    settings: Settings,
    samples: Samples,
    ranks: Ranks,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    tokens, moments, width = layer.tokens(), layer.moments, criterion == "width"
    bend = 1.0 if width else abs(curvature_at_zero(settings.unit_activation))
    row_norm = torch.cat([_rows(module, tokens.dtype) for module in layer.modules]).norm(dim=0)
    whitening = moments.factor(layer.linear) if settings.whiten else None

    def step_along(vectors: Tensor) -> Tensor:
        if whitening is not None:
            return moments.whitened_step(vectors, settings.step_size)
        return moments.step(vectors, row_norm, settings.step_size)

    def score(value: Tensor, vectors: Tensor) -> Tensor:
        if whitening is not None:
            vectors, length = unit_directions(whitening, vectors)
            value = value / length.square()
        return 0.5 * bend * step_along(vectors).square() * (-value if width else value.abs())

    pairs = extreme_pairs(
        tokens,
        importance=importance,
        start=_start(layer, criterion, whitening, settings, generator),
        score=score,
        samples=samples,
        ranks=ranks,
        options=settings.solver,
        generator=generator,
        smallest_only=width,
        flip=settings.flip,
        transform=None if whitening is None else partial(whitened_inputs, whitening),
    )
    if whitening is not None:
        pairs = unwhitened(whitening, pairs)
    step = step_along(pairs.vector).double()
    towards = torch.where(pairs.largest, pairs.held_out, -pairs.held_out).clamp_min(0)
    passed = beyond_noise(pairs.held_out, pairs.standard_error, pairs.largest, settings.significance)
    return {
        "eigenvalue": pairs.held_out,
        "standard_error": pairs.standard_error,
        "residual": pairs.residual.double(),
        "direction": pairs.vector,
        "response": moments.response(pairs.vector).double(),
        "step": step,
        "gain": 0.5 * bend * step.square() * towards,
        "significant": passed & pairs.refined & (step > 0),
        "fit_eigenvalue": pairs.value.double(),
        "refined": pairs.refined,
    }


def _control(
    layer: CapturedLayer, criterion: str, gradient: Tensor, *, step_size: float, generator: torch.Generator
) -> dict[str, Tensor]:
    rows = _rows(layer.module, gradient.dtype)
    score, direction = control(criterion, gradient, rows, generator, layer.module.bias is not None)
    score = score.double()
    step = layer.moments.step(direction, rows.norm(dim=0), step_size).double()
    first_order = criterion in ("grad_norm", "gradmax")
    zero = torch.zeros_like(score)
    return {
        "eigenvalue": score,
        "standard_error": zero,
        "residual": zero,
        "direction": direction,
        "response": layer.moments.response(direction).double(),
        "step": step,
        "gain": step * score if first_order else score.abs(),
        "significant": (score != 0) & (step > 0),
        "fit_eigenvalue": score,
        "refined": torch.ones_like(score, dtype=torch.bool),
    }


def _rows(module: Affine, dtype: torch.dtype) -> Tensor:
    """`[W, b]` transposed, shape `(d + 1, n)`."""
    weight, bias = (
        value.full_tensor() if isinstance(value, DTensor) else value for value in (module.weight, module.bias)
    )
    weight = layout_of(module).matrix(weight.detach()).to(dtype).t()
    last = torch.zeros_like(weight[:1]) if bias is None else bias.detach().to(dtype)[None]
    return torch.cat([weight, last])


def _start(
    layer: CapturedLayer, criterion: str, whitening: Tensor | None, settings: Settings, generator: torch.Generator
) -> Tensor:
    """Start vectors, shape `(rows · (d + 1), n)`, whitened where the problem is."""
    tokens, size = layer.tokens(), len(layer.modules) * (input_size(layer.module) + 1)
    device = tokens.inputs.device
    start = torch.randn(size, tokens.neurons, generator=generator, dtype=torch.float64).to(device, tokens.dtype)
    if whitening is None:
        # Random vectors that lean towards where the inputs are large: eigenvectors of large eigenvalues lie there.
        start = layer.moments.scaled(start)
    # Neurons that an earlier event analysed start at what was found then.
    earlier = None if settings.warm_start is None else settings.warm_start.get(layer.linear, criterion)
    if earlier is not None and earlier.direction.shape[1] == size:
        known = min(tokens.neurons, earlier.neurons)
        found = earlier.direction[:known].t().to(device, tokens.dtype)
        start[:, :known] = found if whitening is None else whitened(whitening, found)
    if layer.module.bias is None:
        start.view(len(layer.modules), -1, tokens.neurons)[:, -1] = 0
    return start
