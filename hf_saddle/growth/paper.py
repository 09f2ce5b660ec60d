"""The rules and controls of arXiv 2402.12418 and of studies of growth, which no other training needs."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ..models.config_fields import is_number
from .config import CRITERIA, GrowthConfig
from .old_names import accepts_old_names
from .values import check_bounds, explained


CONTROLS = (*CRITERIA, "grad_norm", "gradmax", "paper_score")
DIRECTIONS = ("whitened", "eigenvectors", "random")
SCHEDULES = ("constant", "linear", "lr")

# The four groups of arXiv 2402.12418 that share the budget of an event.
QUOTAS = (
    ("mlp.fc1",),
    ("mlp.fc2",),
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ("attention.o_proj",),
)


@accepts_old_names
@explained
@dataclass
class PaperGrowthConfig(GrowthConfig):
    """
    A [`GrowthConfig`] with rules that only the recipe of arXiv 2402.12418 needs, whose values are those of
    `GrowthConfig.paper()`, and with controls to compare with. All fields of a [`GrowthConfig`] may be given too;
    `criterion` may be 'grad_norm', 'gradmax' or 'paper_score' as well.

    Args:
        layer_threshold (`int`, *optional*, defaults to 1):
            A layer grows only if it has at least this number of candidates.
        quotas (`bool`, *optional*, defaults to `False`):
            Give fc1, fc2, q/k/v and o a quarter of an event's budget each.
        schedule (`str`, *optional*, defaults to `"constant"`):
            How the budget of an event changes: 'constant', 'linear' (falling), 'lr' (with the rate).
        step_size (`float`, *optional*, defaults to 0.2):
            Width: step along a direction, relative to the pre-activation for whitened directions, else to the norm of
            the neuron's row.
        directions (`str`, *optional*, defaults to `"whitened"`):
            Along what neurons grow: 'whitened', eigenvectors relative to the second moments of the inputs;
            'eigenvectors'; 'random', for neurons chosen by eigenvalue. Controls have their own.

    Raises:
        ValueError: As for a [`GrowthConfig`].
    """

    layer_threshold: int = 1
    quotas: bool = False
    schedule: str = "constant"
    step_size: float = 0.2
    directions: str = "whitened"

    known_criteria: ClassVar[tuple[str, ...]] = CONTROLS

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("directions", DIRECTIONS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if not isinstance(self.quotas, bool):
            raise ValueError(f"`quotas` must be True or False, got {self.quotas!r}.")
        check_bounds(self, {"layer_threshold": (1, math.inf, True)})
        if not is_number(self.step_size) or not self.step_size > 0:
            raise ValueError(f"`step_size` must be a number above 0, got {self.step_size!r}.")


def recipe() -> PaperGrowthConfig:
    """The settings of the paper, see [`GrowthConfig.paper`]."""
    return PaperGrowthConfig(
        at=[*range(50, 291, 30)],
        unit="epochs",
        layer_threshold=60,
        max_depth=9,
        criterion="paper_score",
        operator="residual_pair",
        significance=0.0,
        max_growth=None,
        event_budget=580_000,
        schedule="lr",
        quotas=True,
    )
