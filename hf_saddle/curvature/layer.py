"""From captured tokens to the curvature of one layer: eigenpairs, step sizes, predicted gains, significance."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .activations import ACTIVATIONS
from .controls import CONTROLS, control, weight_gradient
from .distributed import Ranks
from .probe import tokens_for_scale
from .report import CurvatureReport, LayerCurvature, check_finite
from .significance import Images, beyond_noise
from .solver import ExtremePairs, SolverOptions
from .tokens import Tokens
from .whitening import Whitening


# Largest change of the pre-activation by a step, as a share of its root mean square.
_LARGEST_CHANGE = 0.5
# What whitening adds to the diagonal of the inputs' moments, as a share of its mean: directions in which the inputs
# hardly vary are not stretched without limit.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Settings:
    """Options of an analysis that concern every layer; see [`analyze_curvature`]."""

    step_size: float
    whiten: bool
    significance: float
    unit_activation: str
    seed: int
    solver: SolverOptions
    warm_start: CurvatureReport | None
    flip: bool


@dataclass
class Moments:
    """Second moments of a layer's inputs and pre-activations over evenly spaced tokens, for step sizes."""

    inputs: Tensor  # (d + 1, d + 1), sum of x̂ x̂ᵀ
    pre_activation: Tensor  # (n,), sum of z²

    @classmethod
    def of(cls, inputs: Tensor, samples: int, pre_activation_square: Tensor) -> "Moments":
        """Moments of one use of the layer: inputs `(tokens, d)`, sum of squares `(n,)`."""
        chosen = tokens_for_scale(inputs, samples).to(pre_activation_square.dtype)
        extended = torch.nn.functional.pad(chosen, (0, 1), value=1.0)
        return cls(extended.t() @ extended, pre_activation_square)

    def add(self, other: "Moments") -> "Moments":
        """The moments of both token sets together."""
        return Moments(self.inputs + other.inputs, self.pre_activation + other.pre_activation)

    def reduced(self, ranks: Ranks) -> "Moments":
        """The moments over all ranks."""
        return Moments(ranks.sum(self.inputs.clone()), ranks.sum(self.pre_activation.clone()))

    def constant_inputs(self) -> bool:
        """Whether all tokens have the same input, up to rounding."""
        count = self.inputs[-1, -1]
        square = self.inputs.diagonal()[:-1] / count
        variance = square - (self.inputs[-1, :-1] / count).square()
        return bool((variance <= 100 * torch.finfo(square.dtype).eps * square).all())

    def step(self, vectors: Tensor, row_norm: Tensor, step_size: float) -> Tensor:
        """
        The step `ε = step_size · ‖[w; b]‖` along unit vectors `(d + 1, n)`, shortened where it would change the
        pre-activation by more than half of its root mean square.

        Relative to the row, a step makes the gain a multiple of the eigenvalue, which the eigenvector is optimal for;
        a step relative to `rms(z) / rms(v · x̂)` instead favours neurons whose eigenvector avoids the inputs. The
        second order model ends where `z` changes by its own size, and inputs with a large mean reach that within a
        small step.
        """
        size = (self.pre_activation / self.inputs[-1, -1]).sqrt()
        return torch.minimum(step_size * row_norm, _LARGEST_CHANGE * size / self.response(vectors))

    def whitened_step(self, vectors: Tensor, step_size: float) -> Tensor:
        """
        The step that changes the pre-activation by `step_size` times its root mean square, at most by half of it.

        Relative to the pre-activation, a step makes the gain a multiple of `vᵀ S v / vᵀ M v`, which whitened
        directions are optimal for.
        """
        size = (self.pre_activation / self.inputs[-1, -1]).sqrt()
        return min(step_size, _LARGEST_CHANGE) * size / self.response(vectors)

    def factor(self) -> Tensor:
        """The Cholesky factor `L` of `M = E[x̂ x̂ᵀ]` with a small ridge, shape `(d + 1, d + 1)`."""
        moments = self.inputs / self.inputs[-1, -1]
        ridge = _RIDGE * moments.diagonal().mean()
        return torch.linalg.cholesky(moments + ridge * torch.eye(len(moments)).to(moments))

    def response(self, vectors: Tensor) -> Tensor:
        """Root mean square of `v · x̂` for vectors `(d + 1, n)`, bounded away from zero, shape `(n,)`."""
        square = (vectors * (self.inputs @ vectors)).sum(dim=0)
        floor = torch.finfo(square.dtype).eps * self.inputs.diagonal().sum()
        return (square.clamp_min(floor) / self.inputs[-1, -1]).sqrt()


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
        whitening = Whitening(moments.factor()) if settings.whiten else None

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
        return 0.5 * abs(
            float(ACTIVATIONS[self.settings.unit_activation].second(torch.zeros((), dtype=torch.float64)))
        )

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
