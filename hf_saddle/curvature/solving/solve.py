"""From captured tokens to the curvature of one layer: eigenpairs, step sizes, predicted gains, significance."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...models.layouts import layout_of
from ...models.parameters import whole
from ..capture.capture import CapturedLayer
from ..capture.inputs import Affine, input_size
from ..capture.moments import Moments
from ..capture.rowspace import pays
from ..capture.tokens import Tokens
from ..ranks import Ranks, seed_of
from ..recognition import curvature_at_zero
from ..report import LayerCurvature, check_finite
from ..samples import Samples
from ..settings import Settings
from .controls import control, weight_gradient
from .eigenpairs import extreme_pairs
from .significance import beyond_noise
from .whitening import directions


def solve_curvature(
    layer: CapturedLayer, criterion: str, *, settings: Settings, samples: Samples, ranks: Ranks
) -> LayerCurvature | str:
    """
    Find the extreme eigenpairs of the neurons of one layer, under `"width"` or `"depth"`.

    Returns:
        `LayerCurvature` or the reason (`str`) why there is no curvature to report; the same on all ranks.

    Raises:
        ValueError: If activations or gradients are not finite.
    """
    importance = layer.tokens().importance()
    reason = _why_nothing(layer, importance, ranks)
    if reason is not None:
        return reason
    generator = _generator(layer, criterion, settings)
    tokens, moments, width = layer.tokens(), layer.moments, criterion == "width"
    row_norm = torch.cat([_rows(module, tokens.dtype) for module in layer.modules]).norm(dim=0)
    bend = 1.0 if width else abs(curvature_at_zero(settings.unit_activation))
    space = whitening = None
    if tokens.inputs.dim() == 2 and pays(
        ranks.total(len(tokens)),
        input_size(layer.module),
        tokens.neurons,
        moments.inputs.shape[1],
        settings.whiten,
    ):
        tokens, importance = tokens.gathered(ranks, samples.first), ranks.concatenate(importance)
        samples, ranks = samples.gathered(ranks), Ranks()
        space = tokens.row_space()
    if space is not None:
        within = moments.within(space)
        whitening = within.factor_if_any() if settings.whiten else None
        if settings.whiten and whitening is None:
            space = None  # tokens that are nearly alike leave coordinates that are rounding
        else:
            tokens, moments = replace(tokens, inputs=space.own, extended=True), within
    if settings.whiten and whitening is None:
        whitening = moments.factor(layer.linear, tokens.module.bias is not None)

    def step_along(vectors: Tensor) -> Tensor:
        if whitening is not None:
            return moments.whitened_step(vectors, settings.step_size)
        return moments.step(vectors, row_norm, settings.step_size)

    def score(value: Tensor, vectors: Tensor) -> Tensor:
        if whitening is not None:
            vectors = directions(whitening, vectors)  # of any length: the step is as much the shorter
        return 0.5 * bend * step_along(vectors).square() * (-value if width else value.abs())

    size = len(layer.modules) * moments.inputs.shape[-1]
    pairs = extreme_pairs(
        tokens,
        importance=importance,
        start=_start(tokens, moments, size, whitening, generator),
        score=score,
        samples=samples,
        ranks=ranks,
        options=settings.solver,
        generator=generator,
        smallest_only=width,
        flip=settings.flip,
        whitening=whitening,
    )
    if whitening is not None:
        pairs = pairs.unwhitened(whitening)
    step = step_along(pairs.vector).double()
    response = moments.response(pairs.vector).double()
    towards = torch.where(pairs.largest, pairs.held_out, -pairs.held_out).clamp_min(0)
    passed = beyond_noise(pairs.held_out, pairs.standard_error, pairs.largest, settings.significance)
    direction = pairs.vector
    if space is not None:
        direction = _by_rows(space.directions, direction, len(layer.modules))
        direction = direction / direction.norm(dim=0)
    direction = _oriented(direction)
    found = {
        "eigenvalue": pairs.held_out,
        "standard_error": pairs.standard_error,
        "residual": pairs.residual.double(),
        "direction": direction,
        "response": response,
        "step": step,
        "gain": 0.5 * bend * step.square() * towards,
        "significant": passed & pairs.refined & (step > 0),
        "fit_eigenvalue": pairs.value.double(),
        "refined": pairs.refined,
    }
    return _as_report(layer, criterion, found)


def solve_control(
    layer: CapturedLayer, criterion: str, *, settings: Settings, samples: Samples, ranks: Ranks
) -> LayerCurvature | str:
    """Score the neurons of one layer under a control criterion; see [`solve_curvature`]."""
    reason = _why_nothing(layer, layer.tokens().importance(), ranks)
    if reason is not None:
        return reason
    generator = _generator(layer, criterion, settings)
    gradient = weight_gradient(layer.tokens(), samples.total, ranks)
    rows = _rows(layer.module, gradient.dtype)
    score, direction = control(criterion, gradient, rows, generator, layer.module.bias is not None)
    score = score.double()
    step = layer.moments.step(direction, rows.norm(dim=0), settings.step_size).double()
    first_order = criterion in ("grad_norm", "gradmax")
    zero = torch.zeros_like(score)
    found = {
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
    return _as_report(layer, criterion, found)


def _why_nothing(layer: CapturedLayer, importance: Tensor, ranks: Ranks) -> str | None:
    """Why there is nothing to be found in what a layer showed, if there is not."""
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
    return None


def _generator(layer: CapturedLayer, criterion: str, settings: Settings) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(settings.seed, layer.linear, criterion))


def _as_report(layer: CapturedLayer, criterion: str, found: dict[str, Tensor]) -> LayerCurvature:
    """What was found, by the names of the report's fields, with what growing a neuron costs."""
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


def _rows(module: Affine, dtype: torch.dtype) -> Tensor:
    """`[W, b]` transposed, shape `(d + 1, n)`."""
    weight = layout_of(module).matrix(whole(module.weight)).to(dtype).t()
    last = torch.zeros_like(weight[:1]) if module.bias is None else whole(module.bias).to(dtype)[None]
    return torch.cat([weight, last])


def _oriented(directions: Tensor) -> Tensor:
    """
    Directions `(size, n)`, each with the sign that makes its entry of greatest magnitude positive: an eigenvector has
    none of its own, and rounding is not to choose it.
    """
    greatest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return torch.where(greatest < 0, -directions, directions)


def _by_rows(map_columns: Callable[[Tensor], Tensor], vectors: Tensor, rows: int) -> Tensor:
    """A map of vectors, applied to the parts of `vectors` that belong to each row of the neurons."""
    return torch.cat([map_columns(part) for part in vectors.chunk(rows)])


def _start(
    tokens: Tokens,
    moments: Moments,
    size: int,
    whitening: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Start vectors, shape `(size, n)`, whitened where the problem is."""
    device = tokens.inputs.device
    start = torch.randn(size, tokens.neurons, generator=generator, dtype=torch.float64).to(device, tokens.dtype)
    if whitening is None:
        # Random vectors that lean towards where the inputs are large: eigenvectors of large eigenvalues lie there.
        start = moments.scaled(start)
    if tokens.module.bias is None and not tokens.extended:
        start.view(size // moments.inputs.shape[-1], -1, tokens.neurons)[:, -1] = 0
    return start
