"""What an analysis is asked for, and which of it makes sense."""

from dataclasses import dataclass

from torch import nn

from .activations import ACTIVATIONS
from .controls import CONTROLS
from .eigenpairs import SolverOptions
from .recognition import curvature_at_zero
from .report import CurvatureReport


CRITERIA = ("width", "depth", *CONTROLS)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of an analysis; see [`analyze_curvature`]."""

    criteria: tuple[str, ...]
    solver: SolverOptions
    max_tokens: int
    seed: int
    significance: float
    whiten: bool
    step_size: float = 0.1
    unit_activation: nn.Module | str = "gelu"
    warm_start: CurvatureReport | None = None
    flip: bool = False  # every sample's coefficients get a random sign (null model)

    def __post_init__(self) -> None:
        criteria = self.criteria
        unknown = [name for name in criteria if name not in CRITERIA]
        if unknown or not criteria or len(set(criteria)) < len(criteria):
            raise ValueError(f"`criterion` must be one or several different ones of {CRITERIA}, got {criteria}.")
        if not self.step_size > 0:
            raise ValueError(f"`step_size` must be positive, got {self.step_size}.")
        if not self.significance >= 0:
            raise ValueError(f"`significance` must not be negative, got {self.significance}.")
        if self.max_tokens < 1:
            raise ValueError(f"`max_tokens` must be at least 1, got {self.max_tokens}.")
        activation = self.unit_activation
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(f"`unit_activation` must be a module or one of {tuple(ACTIVATIONS)}, got {activation!r}.")
        if "depth" in criteria:
            try:
                curvature_at_zero(activation)
            except ValueError as error:
                raise ValueError(f"`unit_activation`: {error}.") from error
