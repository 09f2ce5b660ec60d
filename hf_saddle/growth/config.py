"""When, where, how and how much a model grows: options only, with pure functions of them."""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..models.shapes import MAX_SKIP_DEPTH
from ..models.sites import LINEARS
from .operators import DEPTH_OPERATORS, OPERATORS, WIDTH_OPERATORS


UNITS = ("epochs", "steps")
CRITERIA = ("auto", "width", "depth", "random", "grad_norm", "gradmax", "paper_score")
DIRECTIONS = ("whitened", "eigenvectors", "random")
BUDGET_UNITS = ("parameters", "macs")
SCHEDULES = ("constant", "linear", "lr")

# The four groups of arXiv 2402.12418 that share the budget of an event.
QUOTAS = (
    ("mlp.fc1",),
    ("mlp.fc2",),
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ("attention.o_proj",),
)

# Up to here a `budget` is a multiple of the initial size: no vision transformer is that small.
MAX_MULTIPLE = 100

# The reduced DeiT-S that arXiv 2402.12418 starts from, as fields of a `SaddleViTConfig`.
PAPER_START = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "head_dim": 32,
    "attention_scaling": 64**-0.5,
    "intermediate_size": 768,
}


def _help(text: str) -> Any:
    return {"help": text}


@dataclass
class GrowthConfig:
    """
    When, where, how and how much a model grows. Usable with `HfArgumentParser`.

    An *event* is one growth of the whole model; a *layer* is one growable linear, such as `mlp.fc1` of encoder layer
    3.

    Args:
        warmup (`float`, *optional*, defaults to 10):
            First event, in `unit`.
        interval (`float`, *optional*, defaults to 10):
            Time between events, in `unit`.
        unit (`str`, *optional*, defaults to `"epochs"`):
            Unit of `warmup`, `interval` and `stop`: 'epochs' or 'steps'.
        num_events (`int`, *optional*, defaults to 5):
            Number of events; None for no limit.
        stop (`float`, *optional*):
            No event after this time, in `unit`.
        linears (`list[str]`, *optional*):
            Linears that may grow, of attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.fc1,
            mlp.fc2; all if None.
        layers (`list[int]`, *optional*):
            Encoder layers that may grow; all if None.
        layer_threshold (`int`, *optional*, defaults to 1):
            A layer grows only if it has at least this number of candidates.
        max_per_layer (`int`, *optional*):
            Neurons that may grow in one layer and event.
        max_depth (`int`, *optional*, defaults to 2):
            Branches that may be nested; 0 allows width only.
        criterion (`str`, *optional*, defaults to `"auto"`):
            What ranks the neurons, of auto, width, depth, random, grad_norm, gradmax, paper_score; 'auto' is width and
            depth.
        operator (`str`, *optional*, defaults to `"auto"`):
            How neurons grow, of auto, zero_gain, residual_pair, opposed_pair, split, net2net, gradmax; 'auto' fits the
            criterion.
        step_size (`float`, *optional*, defaults to 0.2):
            Width: step along a direction, relative to the pre-activation for whitened directions, else to the norm of
            the neuron's row.
        unit_scale (`float`, *optional*, defaults to 1.0):
            Depth: root mean square of the pre-activation of a new unit that has a gain.
        gain_init (`float`, *optional*, defaults to 0.0):
            Size of the gains of zero_gain units at the start, 0 preserves the function exactly.
        line_search (`bool`, *optional*, defaults to `False`):
            Scale the steps of an event by a line search of the probe loss.
        both_ends (`bool`, *optional*, defaults to `True`):
            Depth: follow positive eigenvalues too, with a gain of the other sign.
        directions (`str`, *optional*, defaults to `"whitened"`):
            Along what neurons grow: 'whitened', eigenvectors relative to the second moments of the inputs;
            'eigenvectors'; 'random', for neurons chosen by eigenvalue. Controls have their own.
        significance (`float`, *optional*, defaults to 2.0):
            Standard errors by which an eigenvalue must differ from zero.
        budget (`float`, *optional*, defaults to 1.5):
            Final size of the model in `budget_unit`; up to 100 a multiple of the size before the first event. None for
            no limit.
        budget_unit (`str`, *optional*, defaults to `"parameters"`):
            'parameters', or 'macs' of one image.
        event_budget (`float`, *optional*):
            What one event may add in `budget_unit`; a share of `budget` if None.
        schedule (`str`, *optional*, defaults to `"constant"`):
            How the budget of an event changes: 'constant', 'linear' (falling), 'lr' (with the rate).
        quotas (`bool`, *optional*, defaults to `False`):
            Give fc1, fc2, q/k/v and o a quarter of an event's budget each.
        probe_samples (`int`, *optional*, defaults to 1024):
            Training samples that the curvature is measured on.
        probe_batch_size (`int`, *optional*, defaults to 64):
            Batch size of the measurement.
        growth_seed (`int`, *optional*, defaults to 0):
            Seed of probe samples, start vectors and random controls.

    Raises:
        ValueError: If a field has a value that cannot be meant; the message names the field and the remedy.
    """

    warmup: float = field(default=10, metadata=_help("First event, in `unit`."))
    interval: float = field(default=10, metadata=_help("Time between events, in `unit`."))
    unit: str = field(
        default="epochs", metadata=_help("Unit of `warmup`, `interval` and `stop`: 'epochs' or 'steps'.")
    )
    num_events: int | None = field(default=5, metadata=_help("Number of events; None for no limit."))
    stop: float | None = field(default=None, metadata=_help("No event after this time, in `unit`."))

    linears: list[str] | None = field(
        default=None, metadata=_help(f"Linears that may grow, of {', '.join(LINEARS)}; all if None.")
    )
    layers: list[int] | None = field(default=None, metadata=_help("Encoder layers that may grow; all if None."))
    layer_threshold: int = field(
        default=1, metadata=_help("A layer grows only if it has at least this number of candidates.")
    )
    max_per_layer: int | None = field(default=None, metadata=_help("Neurons that may grow in one layer and event."))
    max_depth: int = field(default=2, metadata=_help("Branches that may be nested; 0 allows width only."))

    criterion: str = field(
        default="auto", metadata=_help(f"What ranks the neurons, of {', '.join(CRITERIA)}; 'auto' is width and depth.")
    )
    operator: str = field(
        default="auto",
        metadata=_help(f"How neurons grow, of auto, {', '.join(OPERATORS)}; 'auto' fits the criterion."),
    )
    step_size: float = field(
        default=0.2,
        metadata=_help(
            "Width: step along a direction, relative to the pre-activation for whitened directions, else to the norm "
            "of the neuron's row."
        ),
    )
    unit_scale: float = field(
        default=1.0, metadata=_help("Depth: root mean square of the pre-activation of a new unit that has a gain.")
    )
    gain_init: float = field(
        default=0.0,
        metadata=_help("Size of the gains of zero_gain units at the start, 0 preserves the function exactly."),
    )
    line_search: bool = field(
        default=False, metadata=_help("Scale the steps of an event by a line search of the probe loss.")
    )
    both_ends: bool = field(
        default=True, metadata=_help("Depth: follow positive eigenvalues too, with a gain of the other sign.")
    )
    directions: str = field(
        default="whitened",
        metadata=_help(
            "Along what neurons grow: 'whitened', eigenvectors relative to the second moments of the inputs; "
            "'eigenvectors'; 'random', for neurons chosen by eigenvalue. Controls have their own."
        ),
    )
    significance: float = field(
        default=2.0, metadata=_help("Standard errors by which an eigenvalue must differ from zero.")
    )

    budget: float | None = field(
        default=1.5,
        metadata=_help(
            f"Final size of the model in `budget_unit`; up to {MAX_MULTIPLE} a multiple of the size before the first "
            "event. None for no limit."
        ),
    )
    budget_unit: str = field(default="parameters", metadata=_help("'parameters', or 'macs' of one image."))
    event_budget: float | None = field(
        default=None, metadata=_help("What one event may add in `budget_unit`; a share of `budget` if None.")
    )
    schedule: str = field(
        default="constant",
        metadata=_help("How the budget of an event changes: 'constant', 'linear' (falling), 'lr' (with the rate)."),
    )
    quotas: bool = field(
        default=False, metadata=_help("Give fc1, fc2, q/k/v and o a quarter of an event's budget each.")
    )

    probe_samples: int = field(default=1024, metadata=_help("Training samples that the curvature is measured on."))
    probe_batch_size: int = field(default=64, metadata=_help("Batch size of the measurement."))
    growth_seed: int = field(default=0, metadata=_help("Seed of probe samples, start vectors and random controls."))

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        if self.budget is None and self.event_budget is None:
            raise ValueError("`budget` and `event_budget` are both None: set one of them, or growth has no limit.")
        if self.schedule == "linear" and self.num_events is None:
            raise ValueError("`schedule='linear'` falls to zero over `num_events`: set `num_events`.")
        if self.operator in WIDTH_OPERATORS and self.criterion == "depth":
            raise ValueError(
                f"`operator={self.operator!r}` widens, but `criterion='depth'` ranks for depth: use "
                "`criterion='width'` or an operator of depth."
            )
        if self.operator in DEPTH_OPERATORS and self.criterion == "width":
            raise ValueError(
                f"`operator={self.operator!r}` deepens, but `criterion='width'` ranks for width: use "
                "`criterion='depth'`, or `operator='split'`."
            )

    def _check_choices(self) -> None:
        choices = {
            "unit": UNITS,
            "criterion": CRITERIA,
            "operator": ("auto", *OPERATORS),
            "budget_unit": BUDGET_UNITS,
            "schedule": SCHEDULES,
            "directions": DIRECTIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name in ("line_search", "both_ends", "quotas"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        # Lists, as a checkpoint keeps them.
        for name in ("linears", "layers"):
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))
        if self.linears is not None and not _is_list(self.linears, lambda name: name in LINEARS):
            raise ValueError(f"`linears` must be None or name linears of {', '.join(LINEARS)}, got {self.linears!r}.")
        if self.layers is not None and not _is_list(self.layers, lambda index: is_int(index) and index >= 0):
            raise ValueError(f"`layers` must be None or a list of indices of encoder layers, got {self.layers!r}.")

    def _check_numbers(self) -> None:
        bounds: dict[str, tuple[float, float, bool]] = {  # smallest, largest, whole numbers only
            "warmup": (0, math.inf, False),
            "num_events": (1, math.inf, True),
            "stop": (0, math.inf, False),
            "layer_threshold": (1, math.inf, True),
            "max_per_layer": (1, math.inf, True),
            "max_depth": (0, MAX_SKIP_DEPTH, True),
            "gain_init": (0, math.inf, False),
            "significance": (0, math.inf, False),
            "event_budget": (0, math.inf, False),
            "probe_samples": (4, math.inf, True),
            "probe_batch_size": (1, math.inf, True),
            "growth_seed": (0, 2**63 - 1, True),
        }
        optional = ("num_events", "stop", "max_per_layer", "event_budget", "budget")
        for name, (low, high, whole) in bounds.items():
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not is_number(value) or (whole and not is_int(value)) or not low <= value <= high:
                kind = "an integer" if whole else "a number"
                limit = f"in [{low}, {high}]" if math.isfinite(high) else f"of at least {low}"
                raise ValueError(f"`{name}` must be {kind} {limit}, got {value!r}.")
        for name, above in (("interval", 0), ("step_size", 0), ("unit_scale", 0), ("budget", 1)):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not is_number(value) or not value > above:
                raise ValueError(f"`{name}` must be a number above {above}, got {value!r}.")

    @classmethod
    def paper(cls) -> "GrowthConfig":
        """
        The settings of arXiv 2402.12418 for 300 epochs: events at epochs 50, 80, …, 290, each with 580,000 parameters
        times the learning rate relative to its peak, in four quotas, residual pairs in layers with 60 candidates.
        Its start is the reduced DeiT-S, `SaddleViTConfig(**PAPER_START)`.
        """
        return cls(
            warmup=50,
            interval=30,
            num_events=9,
            layer_threshold=60,
            max_depth=9,
            criterion="paper_score",
            operator="residual_pair",
            significance=0.0,
            budget=None,
            event_budget=580_000,
            schedule="lr",
            quotas=True,
        )

    @property
    def criteria(self) -> tuple[str, ...]:
        """What [`analyze_curvature`] has to measure."""
        drawn = self.directions == "random" and self.criterion != "random"
        return (*self.ranking, "random") if drawn else self.ranking

    @property
    def ranking(self) -> tuple[str, ...]:
        """The criteria that rank the neurons."""
        if self.criterion != "auto":
            return (self.criterion,)
        if self.operator in WIDTH_OPERATORS:
            return ("width",)
        return ("depth",) if self.operator in DEPTH_OPERATORS else ("width", "depth")

    def event_due(self, progress: float, events_done: int) -> bool:
        """
        Whether the next event is to happen.

        Args:
            progress (`float`): Time since the start of the training, in `unit`.
            events_done (`int`): Events that happened so far, empty ones included.
        """
        if self.num_events is not None and events_done >= self.num_events:
            return False
        slack = 1e-6  # epochs are fractions of steps, and the tenth of ten tenths may be below one
        if self.stop is not None and progress > self.stop + slack:
            return False
        return progress + slack >= self.warmup + events_done * self.interval

    def final_budget(self, initial: int) -> float:
        """Size that the model may reach in `budget_unit`, given its size before the first event; infinite if None."""
        if self.budget is None:
            return math.inf
        return self.budget * initial if self.budget <= MAX_MULTIPLE else self.budget

    def event_budget_for(self, event: int, *, remaining: float = math.inf, lr_ratio: float = 1.0) -> float:
        """
        What an event may add.

        Args:
            event (`int`): Index of the event, from 0.
            remaining (`float`, *optional*, defaults to infinity): What is left of `budget`.
            lr_ratio (`float`, *optional*, defaults to 1.0): Learning rate relative to its peak, for `schedule="lr"`.

        Returns:
            `float`: The budget in `budget_unit`, never above `remaining` nor below 0; infinite only without a limit.
        """
        events, to_come = (1, 1) if self.num_events is None else (self.num_events, self.num_events - event)
        if to_come <= 0:
            return 0.0
        falling = self.schedule == "linear"
        if self.event_budget is not None:
            due = self.event_budget * (to_come / events if falling else 1.0)
        else:
            # Of the shares n, n - 1, …, 1 the first is 2 / (n + 1) of their sum.
            due = remaining * (2 / (to_come + 1) if falling else 1 / to_come)
        if self.schedule == "lr":
            due *= lr_ratio
        return max(0.0, min(due, remaining))

    def to_dict(self) -> dict[str, Any]:
        """The fields, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GrowthConfig":
        """
        The inverse of `to_dict`.

        Raises:
            ValueError: If there is an unknown field, or one has a bad value.
        """
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"GrowthConfig has no field {', '.join(unknown)}; it was written by another version.")
        return cls(**values)


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(fits(item) for item in value)


def is_int(value: Any) -> bool:
    """Whether a value is a whole number; booleans are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, as JSON needs it; booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
