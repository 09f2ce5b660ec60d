"""What an analysis is asked for, and which of it makes sense."""

from dataclasses import dataclass

from torch import nn

from .activations import ACTIVATIONS
from .recognition import curvature_at_zero
from .solving.controls import CONTROLS


CRITERIA = ("width", "depth", *CONTROLS)


def kind_of(criterion: str) -> str:
    """What is captured for a criterion: gradients at φ(z) for `"width"`, at z for all others (`"depth"`)."""
    return "width" if criterion == "width" else "depth"


@dataclass(frozen=True)
class SolverOptions:
    """
    How much work the eigensolver does.

    Args:
        screen_tokens (`float`, *optional*, defaults to 1/12): Share of the tokens, drawn by importance, on which all
            neurons are screened. 1 turns screening off: every neuron is refined on all tokens.
        screen_floor (`int`, *optional*, defaults to 512): Number of tokens that screening uses at least.
        screen_steps (`int`, *optional*, defaults to 3): Lanczos steps of the screening, per fold,
            from where the gradient points.
        shortlist (`float`, *optional*, defaults to 1/5): Share of the neurons, by screened gain, of gated ones
            also by the size of their coefficients, that are refined.
        shortlist_floor (`int`, *optional*, defaults to 64): Number of neurons that are refined at least.
        refine_steps (`int`, *optional*, defaults to 2): Lanczos steps on all tokens of each fold, from the screened
            vectors.
        leaders (`float`, *optional*, defaults to 0.6): Share of the refined neurons, by refined gain, that are
            polished: only of those that may be chosen in the end the order has to be known well.
        polish_steps (`int`, *optional*, defaults to 4): Lanczos steps on the tokens of both folds, from the
            combination of the folds' vectors.
        tolerance (`float`, *optional*, defaults to 0.01): Recurrences stop early when all residuals are below this
            share of their eigenvalues.
    """

    screen_tokens: float = 1 / 12
    screen_floor: int = 512
    screen_steps: int = 3
    shortlist: float = 1 / 5
    shortlist_floor: int = 64
    refine_steps: int = 2
    leaders: float = 0.6
    polish_steps: int = 4
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        for name in ("screen_tokens", "shortlist", "leaders"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in (0, 1], got {getattr(self, name)}.")
        for name in ("screen_floor", "screen_steps", "shortlist_floor", "refine_steps", "polish_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.tolerance >= 0:
            raise ValueError(f"`tolerance` must not be negative, got {self.tolerance}.")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of an analysis; see [`analyze_curvature`]."""

    criteria: tuple[str, ...]
    solver: SolverOptions = SolverOptions()
    max_tokens: int = 4096
    seed: int = 0
    significance: float = 2.0
    whiten: bool = False
    step_size: float = 0.1
    unit_activation: nn.Module | str = "gelu"
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
