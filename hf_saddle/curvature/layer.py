"""From captured tokens to the curvature of one layer: eigenpairs, step sizes, predicted gains, significance."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .controls import CONTROLS, control, weight_gradient
from .distributed import Ranks
from .moments import Moments
from .recognition import curvature_at_zero
from .report import CurvatureReport, LayerCurvature, check_finite
from .significance import Images, beyond_noise
from .solver import ExtremePairs, SolverOptions
from .tokens import Tokens
from .whitening import Whitening


@dataclass(frozen=True)
class Settings:
    """Options of an analysis that concern every layer; see [`analyze_curvature`]."""

    step_size: float
    whiten: bool
    significance: float
    unit_activation: nn.Module | str
    seed: int
    solver: SolverOptions
    warm_start: CurvatureReport | None
    flip: bool


class LayerAnalysis:
    """
    The analysis of one layer under one criterion.

    Args:
        name (`str`): Path of the layer.
        module (`nn.Linear`): The layer.
        criterion (`str`): The criterion.
        settings (`Settings`): Options.
        images (`Images`): The probe's images.
        ranks (`Ranks`): Processes over which sums run.
    """

    def __init__(self, name: str, module: nn.Linear, criterion: str, settings: Settings, images: Images, ranks: Ranks):
        self.name, self.module, self.criterion = name, module, criterion
        self.settings, self.images, self.ranks = settings, images, ranks
        self.generator = torch.Generator().manual_seed(seed_of(settings.seed, name, criterion))

    def run(self, tokens: Tokens, moments: Moments, consumer_width: int) -> LayerCurvature | str:
        """
        Analyse the layer.

        Args:
            tokens (`Tokens`): What was captured, on this rank.
            moments (`Moments`): Of the same layer, on this rank.
            consumer_width (`int`): `d_out` of what reads the neurons; used for the cost of a split.

        Returns:
            `LayerCurvature` or the reason (`str`) why there is no curvature to report.

        Raises:
            ValueError: If activations or gradients are not finite.
        """
        moments = moments.reduced(self.ranks)
        importance = tokens.importance()
        total = self.ranks.sum(importance.sum())
        if not bool(torch.isfinite(total) & torch.isfinite(moments.pre_activation).all()):
            raise ValueError(
                f"NaN or infinity in the activations or gradients of {self.name}. Check the model's outputs and the "
                "loss on the probe batches; under fp16 autocast use bf16 or no autocast for the analysis."
            )
        if float(total) == 0:
            return "its gradient is zero on the probe samples"
        if moments.constant_inputs():
            return "its input is the same for all tokens"
        size = self.module.in_features
        if self.criterion in CONTROLS:
            layer = self._control(tokens, moments)
            costs = (size + 2, size + 1)
        else:
            layer = self._curvature(tokens, moments, importance)
            costs = (size + 1 + consumer_width, size + consumer_width) if self._width else (size + 2, size + 1)
        layer["direction"] = layer["direction"].t().contiguous()
        fields = {name: value.cpu() for name, value in layer.items()}
        return check_finite(
            LayerCurvature(self.name, self.criterion, **fields, cost_parameters=costs[0], cost_macs=costs[1])
        )

    @property
    def _width(self) -> bool:
        return self.criterion == "width"

    def _curvature(self, tokens: Tokens, moments: Moments, importance: Tensor) -> dict[str, Tensor]:
        settings = self.settings
        factor = self._gain_factor()
        row_norm = self._rows(tokens.dtype).norm(dim=0)
        whitening = Whitening(moments.factor(self.name)) if settings.whiten else None

        def step_along(vectors: Tensor) -> Tensor:
            if settings.whiten:
                return moments.whitened_step(vectors, settings.step_size)
            return moments.step(vectors, row_norm, settings.step_size)

        def score(value: Tensor, vectors: Tensor) -> Tensor:
            if whitening is not None:
                vectors, length = whitening.directions(vectors)
                value = value / length.square()
            curvature = -value if self._width else value.abs()
            return factor * step_along(vectors).square() * curvature

        solver = ExtremePairs(
            tokens,
            self.images,
            self.ranks,
            settings.solver,
            self.generator,
            smallest_only=self._width,
            flip=settings.flip,
            transform=None if whitening is None else whitening.inputs,
        )
        pairs = solver.solve(importance, score, self._start(tokens, moments, whitening))
        if whitening is not None:
            pairs = whitening.unwhitened(pairs)
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
            "gain": factor * step.square() * towards,
            "significant": passed & pairs.refined & (step > 0),
            "fit_eigenvalue": pairs.value.double(),
            "refined": pairs.refined,
        }

    def _gain_factor(self) -> float:
        if self._width:
            return 0.5
        return 0.5 * abs(curvature_at_zero(self.settings.unit_activation))

    def _control(self, tokens: Tokens, moments: Moments) -> dict[str, Tensor]:
        gradient = weight_gradient(tokens, self.images.total, self.ranks)
        rows = self._rows(gradient.dtype)
        score, direction = control(self.criterion, gradient, rows, self.generator)
        score = score.double()
        step = moments.step(direction, rows.norm(dim=0), self.settings.step_size).double()
        first_order = self.criterion in ("grad_norm", "gradmax")
        zero = torch.zeros_like(score)
        return {
            "eigenvalue": score,
            "standard_error": zero,
            "residual": zero,
            "direction": direction,
            "response": moments.response(direction).double(),
            "step": step,
            "gain": step * score if first_order else score.abs(),
            "significant": (score != 0) & (step > 0),
            "fit_eigenvalue": score,
            "refined": torch.ones_like(score, dtype=torch.bool),
        }

    def _rows(self, dtype: torch.dtype) -> Tensor:
        """`[W, b]` transposed, shape `(d + 1, n)`."""
        weight = self.module.weight.detach().to(dtype).t()
        bias = self.module.bias
        last = torch.zeros_like(weight[:1]) if bias is None else bias.detach().to(dtype)[None]
        return torch.cat([weight, last])

    def _start(self, tokens: Tokens, moments: Moments, whitening: Whitening | None) -> Tensor:
        """Start vectors, shape `(d + 1, n)`, whitened where the problem is."""
        size, device = self.module.in_features + 1, tokens.inputs.device
        start = torch.randn(size, tokens.neurons, generator=self.generator, dtype=torch.float64)
        start = start.to(device, tokens.dtype)
        if whitening is None:
            # Random vectors that lean towards where the inputs are large: eigenvectors of large eigenvalues lie there.
            start = moments.inputs @ start
        # Neurons that an earlier event analysed start at what was found then.
        earlier = None if self.settings.warm_start is None else self.settings.warm_start.get(self.name, self.criterion)
        if earlier is not None and earlier.direction.shape[1] == size:
            known = min(tokens.neurons, earlier.neurons)
            found = earlier.direction[:known].t().to(device, tokens.dtype)
            start[:, :known] = found if whitening is None else whitening.whitened(found)
        return start


def seed_of(seed: int, *parts: object) -> int:
    """A seed for one purpose, the same on every rank and in every process."""
    return zlib.crc32("/".join(map(str, (seed, *parts))).encode())
