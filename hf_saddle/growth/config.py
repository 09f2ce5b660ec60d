"""When, where, how and how much a model grows: options only, with pure functions of them."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any

from ..models.shapes import MAX_SKIP_DEPTH
from .old_names import accepts_old_names, current_names, refuse
from .operators import DEPTH_OPERATORS, OPERATORS, WIDTH_OPERATORS


UNITS = ("epochs", "steps")
CRITERIA = ("auto", "width", "depth", "random", "grad_norm", "gradmax", "paper_score")
SELECTIONS = ("auto", "pursuit", "gain")
DIRECTIONS = ("whitened", "eigenvectors", "random")
SCHEDULES = ("constant", "linear", "lr")

# The four groups of arXiv 2402.12418 that share the budget of an event.
QUOTAS = (
    ("mlp.fc1",),
    ("mlp.fc2",),
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ("attention.o_proj",),
)

# Nothing grows by more than that: what is larger was meant as a size, and a size that is smaller as a multiple.
MAX_MULTIPLE = 100
_MAX_GROWTH = 1.5

# Few events and early ones ended best (docs/evidence.md); shares of a training fit a short one as well as a long one.
_AT = (0.1, 0.25, 0.4)
# What fills up a schedule in epochs or steps that is given in part.
_PERIODIC: dict[str, Any] = {"warmup": 10, "interval": 10, "unit": "epochs"}
_NOT_GIVEN = -1
_NUM_EVENTS = 5

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


@accepts_old_names
@dataclass
class GrowthConfig:
    """
    When, where, how and how much a model grows. Usable with `HfArgumentParser`.

    An *event* is one growth of the whole model; a *linear* is one that can grow, such as `mlp.fc1` of layer 3. Layers
    are those of an architecture: blocks of attention and an MLP, or of convolutions, counted over all stages and over
    encoder and decoder. Events are due at shares of the training, `at`; any of `warmup`, `interval`, `unit` and
    `num_events` asks for events in epochs or steps instead.

    Args:
        at (`list[float]`, *optional*):
            Events as shares of the training, such as 0.1 0.25 0.4, which is what None stands for unless `warmup`,
            `interval`, `unit` or `num_events` is given.
        warmup (`float`, *optional*):
            First event, in `unit`; 10 if None.
        interval (`float`, *optional*):
            Time between events, in `unit`; 10 if None.
        unit (`str`, *optional*):
            Unit of `warmup` and `interval`: 'epochs' or 'steps'; epochs if None.
        num_events (`int`, *optional*, defaults to -1):
            Number of events by `warmup` and `interval`; None for no limit, -1 for 5.
        linears (`list[str]`, *optional*):
            Linears that may grow, by their names in a layer, such as 'mlp.fc1'; all if None.
        layers (`list[int]`, *optional*):
            Layers that may grow, counted from 0; all if None.
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
        selection (`str`, *optional*, defaults to `"auto"`):
            How neurons are chosen: 'pursuit', by what they add to those already chosen, as long as held-out samples
            gain; 'gain', one by one, until the budget is spent; 'auto' is pursuit where it is possible.
        natural_step (`float`, *optional*, defaults to 0.5):
            Share of the natural step that splits and new gains take at once; with 0 new units start at rest.
        directions (`str`, *optional*, defaults to `"whitened"`):
            Along what neurons grow: 'whitened', eigenvectors relative to the second moments of the inputs;
            'eigenvectors'; 'random', for neurons chosen by eigenvalue. Controls have their own.
        significance (`float`, *optional*, defaults to 2.0):
            Standard errors by which an eigenvalue must differ from zero.
        max_growth (`float`, *optional*, defaults to 1.5):
            Final number of parameters as a multiple of that before the first event; `max_parameters` and `max_macs`
            take its place. None for no limit.
        max_parameters (`float`, *optional*):
            Final number of parameters.
        max_macs (`float`, *optional*):
            Final number of multiply-accumulates of one sample.
        event_budget (`float`, *optional*):
            Parameters that one event may add, multiply-accumulates with `max_macs`; a share of what is left if None.
        probe_samples (`int`, *optional*, defaults to 1024):
            Training samples that the curvature is measured on.
        probe_batch_size (`int`, *optional*, defaults to 64):
            Batch size of the measurement.
        growth_seed (`int`, *optional*, defaults to 0):
            Seed of probe samples, start vectors and random controls.

    Raises:
        ValueError: If a field has a value that cannot be meant; the message names the field and the remedy.
    """

    at: list[float] | None = field(
        default=None,
        kw_only=True,
        metadata=_help(
            "Events as shares of the training, such as 0.1 0.25 0.4, which is what None stands for unless `warmup`, "
            "`interval`, `unit` or `num_events` is given."
        ),
    )
    warmup: float | None = field(default=None, metadata=_help("First event, in `unit`; 10 if None."))
    interval: float | None = field(default=None, metadata=_help("Time between events, in `unit`; 10 if None."))
    unit: str | None = field(
        default=None, metadata=_help("Unit of `warmup` and `interval`: 'epochs' or 'steps'; epochs if None.")
    )
    num_events: int | None = field(
        default=_NOT_GIVEN,
        metadata=_help("Number of events by `warmup` and `interval`; None for no limit, -1 for 5."),
    )

    linears: list[str] | None = field(
        default=None,
        metadata=_help("Linears that may grow, by their names in a layer, such as 'mlp.fc1'; all if None."),
    )
    layers: list[int] | None = field(
        default=None, metadata=_help("Layers that may grow, counted from 0; all if None.")
    )
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
    selection: str = field(
        default="auto",
        metadata=_help(
            "How neurons are chosen: 'pursuit', by what they add to those already chosen, as long as held-out samples "
            "gain; 'gain', one by one, until the budget is spent; 'auto' is pursuit where it is possible."
        ),
    )
    natural_step: float = field(
        default=0.5,
        metadata=_help(
            "Share of the natural step that splits and new gains take at once; with 0 new units start at rest."
        ),
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

    max_growth: float | None = field(
        default=_MAX_GROWTH,
        metadata=_help(
            "Final number of parameters as a multiple of that before the first event; `max_parameters` and `max_macs` "
            "take its place. None for no limit."
        ),
    )
    max_parameters: float | None = field(default=None, metadata=_help("Final number of parameters."))
    max_macs: float | None = field(default=None, metadata=_help("Final number of multiply-accumulates of one sample."))
    event_budget: float | None = field(
        default=None,
        metadata=_help(
            "Parameters that one event may add, multiply-accumulates with `max_macs`; a share of what is left if None."
        ),
    )

    probe_samples: int = field(default=1024, metadata=_help("Training samples that the curvature is measured on."))
    probe_batch_size: int = field(default=64, metadata=_help("Batch size of the measurement."))
    growth_seed: int = field(default=0, metadata=_help("Seed of probe samples, start vectors and random controls."))

    _argument_group_name = "growth"  # of `HfArgumentParser`

    # What a `PaperGrowthConfig` has as fields: here every layer with a candidate may grow, and all share one budget.
    layer_threshold = 1
    quotas = False
    schedule = "constant"

    def __post_init__(self) -> None:
        self._settle_schedule()
        self._check_choices()
        self._check_numbers()
        self._check_limits()
        if self.operator in WIDTH_OPERATORS and self.criterion == "depth":
            raise ValueError(
                f"`operator={self.operator!r}` widens, but `criterion='depth'` ranks for depth: use "
                "`criterion='width'` or an operator of depth."
            )
        if self.selection == "pursuit" and not self.pursues:
            raise ValueError(
                f"`selection='pursuit'` chooses splits and zero-gain units by curvature, not "
                f"`criterion={self.criterion!r}` with `operator={self.operator!r}`: use `selection='gain'`."
            )
        if self.operator in DEPTH_OPERATORS and self.criterion == "width":
            raise ValueError(
                f"`operator={self.operator!r}` deepens, but `criterion='width'` ranks for width: use "
                "`criterion='depth'`, or `operator='split'`."
            )

    def _settle_schedule(self) -> None:
        """Fill in one of the two schedules and refuse both at once; what is given takes the place of the default."""
        given = {name: getattr(self, name) for name in _PERIODIC if getattr(self, name) is not None}
        # Beside `at`, None is no limit that could be meant.
        if self.num_events != _NOT_GIVEN and (self.at is None or self.num_events is not None):
            given["num_events"] = self.num_events
        if isinstance(self.at, tuple):
            self.at = list(self.at)
        if given and self.at == list(_AT):
            self.at = None
        if given and self.at is not None:
            told = ", ".join(f"`{name}={value!r}`" for name, value in given.items())
            raise ValueError(f"`at={self.at!r}` and {told} both say when the model grows: leave one of them out.")
        if not given:
            self.at = list(_AT) if self.at is None else self.at
            self.num_events = _NOT_GIVEN
            if not _is_list(self.at, lambda share: is_number(share) and 0 <= share < 1):
                raise ValueError(
                    f"`at` must be a list of shares of the training in [0, 1), got {self.at!r}. Epochs and steps are "
                    "given by `warmup`, `interval` and `unit`."
                )
            if any(later <= earlier for earlier, later in pairwise(self.at)):
                raise ValueError(f"`at` must rise from event to event, got {self.at!r}.")
            return
        for name, value in _PERIODIC.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.num_events == _NOT_GIVEN:
            self.num_events = _NUM_EVENTS

    def _check_choices(self) -> None:
        choices: dict[str, tuple[str | None, ...]] = {
            "unit": UNITS if self.at is None else (None,),
            "criterion": CRITERIA,
            "operator": ("auto", *OPERATORS),
            "directions": DIRECTIONS,
            "selection": SELECTIONS,
            "schedule": SCHEDULES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}."
                )
        if not isinstance(self.quotas, bool):
            raise ValueError(f"`quotas` must be True or False, got {self.quotas!r}.")
        # Lists, as a checkpoint keeps them.
        for name in ("linears", "layers"):
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))
        if self.linears is not None and not _is_list(self.linears, lambda name: isinstance(name, str)):
            raise ValueError(f"`linears` must be None or a list of names such as 'mlp.fc1', got {self.linears!r}.")
        if self.layers is not None and not _is_list(self.layers, lambda index: is_int(index) and index >= 0):
            raise ValueError(f"`layers` must be None or a list of indices of layers, got {self.layers!r}.")

    def _check_numbers(self) -> None:
        bounds: dict[str, tuple[float, float, bool]] = {  # smallest, largest, whole numbers only
            "warmup": (0, math.inf, False),
            "num_events": (1, math.inf, True),
            "max_depth": (0, MAX_SKIP_DEPTH, True),
            "significance": (0, math.inf, False),
            "natural_step": (0, 1, False),
            "event_budget": (0, math.inf, False),
            "layer_threshold": (1, math.inf, True),
            "probe_samples": (8 if self.judged else 4, math.inf, True),  # some choose, others judge
            "probe_batch_size": (1, math.inf, True),
            "growth_seed": (0, 2**63 - 1, True),
        }
        for name, (low, high, whole) in bounds.items():
            value = getattr(self, name)
            if value is None and name in ("num_events", "event_budget"):
                continue
            if self.at is not None and name in ("warmup", "num_events"):
                continue
            if not is_number(value) or (whole and not is_int(value)) or not low <= value <= high:
                kind = "an integer" if whole else "a number"
                limit = f"in [{low}, {high}]" if math.isfinite(high) else f"of at least {low}"
                raise ValueError(f"`{name}` must be {kind} {limit}, got {value!r}.")
        for name in ("step_size",) if self.at is not None else ("interval", "step_size"):
            value = getattr(self, name)
            if not is_number(value) or not value > 0:
                raise ValueError(f"`{name}` must be a number above 0, got {value!r}.")

    def _check_limits(self) -> None:
        sizes = {"max_parameters": self.max_parameters, "max_macs": self.max_macs}
        for name, value in sizes.items():
            if value is not None and (not is_number(value) or value <= MAX_MULTIPLE):
                raise ValueError(
                    f"`{name}` must be a number above {MAX_MULTIPLE}, got {value!r}. A multiple is `max_growth`."
                )
        if self.max_growth is not None and (not is_number(self.max_growth) or not 1 < self.max_growth <= MAX_MULTIPLE):
            raise ValueError(
                f"`max_growth` must be a number above 1 and up to {MAX_MULTIPLE}, got {self.max_growth!r}. A size is "
                "`max_parameters` or `max_macs`."
            )
        given = [f"`{name}={value!r}`" for name, value in sizes.items() if value is not None]
        if given and self.max_growth == _MAX_GROWTH:
            self.max_growth = None
        if self.max_growth is not None:
            given.append(f"`max_growth={self.max_growth!r}`")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both limit the size: leave one of them out.")
        if not given and self.event_budget is None:
            raise ValueError("`max_growth` and `event_budget` are both None: set one of them, or growth has no limit.")

    @staticmethod
    def paper() -> "PaperGrowthConfig":
        """
        The settings of arXiv 2402.12418 for 300 epochs: events at epochs 50, 80, …, 290, each with 580,000 parameters
        times the learning rate relative to its peak, in four quotas, residual pairs in layers with 60 candidates.
        Its start is the reduced DeiT-S, `SaddleViTConfig(**PAPER_START)`.
        """
        return PaperGrowthConfig(
            warmup=50,
            interval=30,
            num_events=9,
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

    @property
    def budget_unit(self) -> str:
        """What `event_budget` and the final size count: `"parameters"`, or `"macs"` with `max_macs`."""
        return "parameters" if self.max_macs is None else "macs"

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

    @property
    def pursues(self) -> bool:
        """Whether neurons are chosen by what they add to others; controls are ranked by their own scores."""
        by_curvature = self.criterion in ("auto", "width", "depth")
        return by_curvature and self.operator in ("auto", "zero_gain", "split") and self.selection != "gain"

    @property
    def judged(self) -> bool:
        """Whether half of the probe judges what the other half has chosen; not where nothing can move at once."""
        if self.operator != "auto":
            return OPERATORS[self.operator].scaled is not None
        return self.criterion not in ("paper_score", "gradmax")

    @property
    def events(self) -> int | None:
        """Number of events; None without a limit."""
        return self.num_events if self.at is None else len(self.at)

    def event_time(self, event: int) -> float:
        """When an event, counted from 0, is due: a share of the training with `at`, else in `unit`."""
        if self.at is not None:
            return self.at[event]
        assert self.warmup is not None and self.interval is not None  # `_settle_schedule`
        return self.warmup + event * self.interval

    def event_due(self, progress: float, events_done: int) -> bool:
        """
        Whether the next event is to happen.

        Args:
            progress (`float`): Time since the start of the training: the share of it that is over with `at`, else in
                `unit`.
            events_done (`int`): Events that happened so far, empty ones included.
        """
        if self.events is not None and events_done >= self.events:
            return False
        slack = 1e-6  # epochs and shares are fractions of steps, and the tenth of ten tenths may be below one
        return progress + slack >= self.event_time(events_done)

    def final_budget(self, initial: int) -> float:
        """Size that the model may reach in `budget_unit`, given its size before the first event; infinite if None."""
        if self.max_growth is not None:
            return self.max_growth * initial
        size = self.max_parameters if self.max_macs is None else self.max_macs
        return math.inf if size is None else size

    def event_budget_for(
        self, event: int, *, remaining: float = math.inf, lr_ratio: float = 1.0, to_come: int | None = None
    ) -> float:
        """
        What an event may add.

        Args:
            event (`int`): Index of the event, from 0.
            remaining (`float`, *optional*, defaults to infinity): What is left of the final size.
            lr_ratio (`float`, *optional*, defaults to 1.0): Learning rate relative to its peak, for `schedule="lr"`.
            to_come (`int`, *optional*):
                Events that this training still has room for, this one included: they share what is left. Defaults to
                all that the config asks for.

        Returns:
            `float`: The budget in `budget_unit`, never above `remaining` nor below 0; infinite only without a limit.
        """
        events, left = (1, 1) if self.events is None else (self.events, self.events - event)
        if left <= 0:
            return 0.0
        falling = self.schedule == "linear"
        if self.event_budget is not None:
            due = self.event_budget * (left / events if falling else 1.0)
        else:
            sharing = left if to_come is None else max(1, min(left, to_come))
            # Of the shares n, n - 1, …, 1 the first is 2 / (n + 1) of their sum.
            due = remaining * (2 / (sharing + 1) if falling else 1 / sharing)
        if self.schedule == "lr":
            due *= lr_ratio
        return max(0.0, min(due, remaining))

    def to_dict(self) -> dict[str, Any]:
        """The fields, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GrowthConfig":
        """
        The inverse of `to_dict`, also of what version 0.1 wrote. With rules of the paper among the values it is a
        [`PaperGrowthConfig`].

        Raises:
            ValueError: If there is an unknown field, one that has no counterpart since, or one has a bad value.
        """
        known = [item.name for item in fields(PaperGrowthConfig)]
        current, lost = current_names(values, known)
        refuse(values, lost)
        unknown = sorted(set(current) - set(known))
        if unknown:
            raise ValueError(f"GrowthConfig has no field {', '.join(unknown)}; it was written by another version.")
        plain, rules = current_names(current, [item.name for item in fields(cls)])
        return PaperGrowthConfig(**current) if rules else cls(**plain)


@accepts_old_names
@dataclass
class PaperGrowthConfig(GrowthConfig):
    """
    A [`GrowthConfig`] with rules that only the recipe of arXiv 2402.12418 needs, whose values are those of
    `GrowthConfig.paper()`. All fields of a [`GrowthConfig`] may be given too.

    Args:
        layer_threshold (`int`, *optional*, defaults to 1):
            A layer grows only if it has at least this number of candidates.
        quotas (`bool`, *optional*, defaults to `False`):
            Give fc1, fc2, q/k/v and o a quarter of an event's budget each.
        schedule (`str`, *optional*, defaults to `"constant"`):
            How the budget of an event changes: 'constant', 'linear' (falling), 'lr' (with the rate).

    Raises:
        ValueError: As for a [`GrowthConfig`].
    """

    layer_threshold: int = field(
        default=1, metadata=_help("A layer grows only if it has at least this number of candidates.")
    )
    quotas: bool = field(
        default=False, metadata=_help("Give fc1, fc2, q/k/v and o a quarter of an event's budget each.")
    )
    schedule: str = field(
        default="constant",
        metadata=_help("How the budget of an event changes: 'constant', 'linear' (falling), 'lr' (with the rate)."),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "linear" and self.events is None:
            raise ValueError("`schedule='linear'` falls to zero over `num_events`: set `num_events`.")


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(fits(item) for item in value)


def is_int(value: Any) -> bool:
    """Whether a value is a whole number; booleans are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, as JSON needs it; booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
