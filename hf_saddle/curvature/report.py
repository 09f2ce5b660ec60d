"""What an analysis found: one eigenpair per neuron, with its error, the step to be taken and what it would cost."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerCurvature:
    """
    The curvature of the loss for every neuron of one affine layer under one criterion.

    The direction and `fit_eigenvalue` come from all probed tokens. `eigenvalue` and `standard_error` come from two
    fits, each on half of the samples and judged on the other half, and are therefore free of the fit's optimism: pure
    noise has a large `fit_eigenvalue`, but an `eigenvalue` around zero.

    | criterion | `eigenvalue` | `gain` |
    |---|---|---|
    | `"width"` | `λ_min` of the splitting matrix | `max(0, -½ ε² λ)`: two copies `θ ± ε v`, halved outgoing weights |
    | `"depth"` | the eigenvalue of `D` of larger magnitude | `½ φ''(0) ε² abs(λ)`: a unit `±φ(ε v · x̂)` with gain 1 |
    | `"grad_norm"` | `‖∂L/∂[w_i; b_i]‖` | `ε` times it: first-order decrease of a step along the gradient |
    | `"gradmax"` | `σ₁ abs(u_1i)` of the layer's gradient (arXiv 2201.05125) | `ε` times it |
    | `"paper_score"` | `min(0, Σ_j ∂L/∂W_ij)` of the code of arXiv 2402.12418 | minus it: a ranking, not a decrease |
    | `"random"` | a uniform random number | the same number: a ranking, not a decrease |

    For the four controls `standard_error` and `residual` are zero and every neuron with a non-zero score is
    significant. `ε = step` is `step_size · ‖[w_i; b_i]‖`, or less where that would change the pre-activation too much.

    Of a whitened analysis (controls apart) the direction is the generalised eigenvector `S v = λ M v` with
    `M = E[x̂ x̂ᵀ]`, scaled to length 1; `eigenvalue`, its errors and `fit_eigenvalue` are `vᵀ S v`, and `ε` changes the
    pre-activation by `step_size` times its root mean square.

    Losses are in the unit of the loss function, averaged over samples.
    """

    linear: str  # path of the layer in the model; of gated neurons that of the gate
    criterion: str
    eigenvalue: Tensor  # (n,) held-out estimate; score of a control
    # (n,) of `eigenvalue`, from per-sample sums, not smaller than that of one half of the samples
    standard_error: Tensor
    residual: Tensor  # (n,) ‖S v - λ v‖; of the screened tokens only where not `refined`
    # (n, d + 1) unit vectors in x̂ = [x; 1] coordinates, x as in `layout_of(layer).matrix(layer.weight)`: a flattened
    # patch of convolutions. The last entry is 0 where the layer has no bias. Width of gated neurons: (n, 2 (d + 1)).
    direction: Tensor
    response: Tensor  # (n,) root mean square of v · x̂ over the tokens, of both rows of gated neurons together
    step: Tensor  # (n,) ε
    gain: Tensor  # (n,) at `step`, from the held-out `eigenvalue`
    significant: Tensor  # (n,) bool
    fit_eigenvalue: Tensor  # (n,) Rayleigh quotient of `direction` on the samples it was fitted to
    refined: Tensor  # (n,) bool; False: only screened on a part of the tokens, hence no candidate
    cost_parameters: int  # of one new unit
    cost_macs: int  # of one new unit, per token, readers at as many tokens as the layer

    @property
    def neurons(self) -> int:
        """Number of neurons of the layer."""
        return len(self.eigenvalue)

    @property
    def candidates(self) -> int:
        """Number of significant neurons."""
        return int(self.significant.sum())


@dataclass(frozen=True)
class CurvatureReport:
    """
    The result of [`analyze_curvature`].

    Attributes:
        layers (`tuple[LayerCurvature, ...]`): One entry per layer and criterion, in the order of the model.
        samples (`int`): Number of probe samples on all ranks.
        tokens (`int`): Largest number of tokens that one of the layers saw, on all ranks.
        loss (`float`): Mean loss of the probe samples.
        seconds (`float`): Duration on this rank, forward and backward passes included.
        seed (`int`): Seed of folds, start vectors and drawn tokens.
        skipped (`dict[str, str]`): Layers that were not analysed, with the reason.
    """

    layers: tuple[LayerCurvature, ...]
    samples: int
    tokens: int
    loss: float
    seconds: float
    seed: int
    skipped: dict[str, str]

    def __iter__(self) -> Iterator[LayerCurvature]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def get(self, linear: str, criterion: str) -> LayerCurvature | None:
        """The entry of a layer and criterion, or `None`."""
        return next((entry for entry in self.layers if (entry.linear, entry.criterion) == (linear, criterion)), None)

    def __getitem__(self, key: tuple[str, str]) -> LayerCurvature:
        entry = self.get(*key)
        if entry is None:
            why = f" It was skipped: {self.skipped[key[0]]}." if key[0] in self.skipped else ""
            raise KeyError(f"The report has no entry for layer {key[0]!r} and criterion {key[1]!r}.{why}")
        return entry

    def to_dict(self) -> dict[str, Any]:
        """The report without directions as plain lists and numbers, fit for JSON."""
        head = {name: getattr(self, name) for name in ("samples", "tokens", "loss", "seconds", "seed", "skipped")}
        return head | {"layers": [_layer_dict(entry) for entry in self.layers]}

    def summary(self) -> str:
        """A table with one line per layer and criterion."""
        header = ("linear", "criterion", "neurons", "significant", "best λ ± SE", "best gain", "cost of a unit")
        body = [header]
        for entry in self.layers:
            best = int(entry.gain.argmax())
            value = f"{float(entry.eigenvalue[best]):.3g} ± {float(entry.standard_error[best]):.2g}"
            gain = f"{float(entry.gain[best]):.3g}"
            counts = (str(entry.neurons), str(entry.candidates))
            body.append((entry.linear, entry.criterion, *counts, value, gain, str(entry.cost_parameters)))
        widths = [max(map(len, column)) for column in zip(*body, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in body
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        head = f"{self.samples} samples, up to {self.tokens} tokens, loss {self.loss:.4g}, {self.seconds:.3g} s"
        skipped = [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join([head, *lines, *skipped])

    def __str__(self) -> str:
        return self.summary()


_TENSORS = tuple(item.name for item in fields(LayerCurvature) if item.type is Tensor)


def _layer_dict(entry: LayerCurvature) -> dict[str, Any]:
    """All but the directions, fit for JSON."""
    values = {item.name: getattr(entry, item.name) for item in fields(entry) if item.name != "direction"}
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}


def nominal_rate(criterion: str, significance: float) -> float:
    """Share of neurons without curvature that pass so many normal standard errors, at one end or either (depth)."""
    both_ends = math.erfc(significance / math.sqrt(2))
    return both_ends if criterion == "depth" else both_ends / 2


@dataclass(frozen=True)
class NullModel:
    """How many neurons an analysis selects when there is nothing to be found."""

    selected: int
    neurons: int
    nominal: float
    report: CurvatureReport

    @property
    def fraction(self) -> float:
        """Share of all neurons that were selected; to be compared with `nominal`."""
        return self.selected / self.neurons


def check_finite(layer: LayerCurvature) -> LayerCurvature:
    """
    Refuse a layer with a NaN or an infinity.

    Raises:
        ValueError: If one of the numbers is not finite.
    """
    for name in _TENSORS:
        if not bool(torch.isfinite(getattr(layer, name)).all()):
            raise ValueError(
                f"The curvature of {layer.linear} ({layer.criterion}) is not finite in `{name}`: its activations "
                "or gradients are out of the range of float32. Check the model's loss, or probe in float64."
            )
    return layer
