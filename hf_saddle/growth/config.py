"""When, where, how and how much a model grows: options only, with pure functions of them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..models.shapes import MAX_SKIP_DEPTH
from .block_records import BLOCK_OPERATORS
from .limits import Limits
from .old_names import accepts_old_names, current_names, refuse
from .operators import DEPTH_OPERATORS, OPERATORS, WIDTH_OPERATORS
from .values import check_bounds, help_, is_int, is_list


if TYPE_CHECKING:
    from .paper import PaperGrowthConfig

CRITERIA = ("auto", "width", "depth", "random")
SELECTIONS = ("auto", "pursuit", "gain")


@accepts_old_names
@dataclass
class GrowthConfig(Limits):
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
        max_growth (`float`, *optional*, defaults to 1.5):
            Final number of parameters as a multiple of that before the first event; `max_parameters` and `max_macs`
            take its place. None for no limit.
        max_parameters (`float`, *optional*):
            Final number of parameters.
        max_macs (`float`, *optional*):
            Final number of multiply-accumulates of one sample.
        event_budget (`float`, *optional*):
            Parameters that one event may add, multiply-accumulates with `max_macs`; a share of what is left if None.
        linears (`list[str]`, *optional*):
            Linears that may grow, by their names in a layer, such as 'mlp.fc1'; all if None.
        layers (`list[int]`, *optional*):
            Layers that may grow, counted from 0; all if None.
        max_depth (`int`, *optional*, defaults to 2):
            Branches that may be nested; 0 allows width only.
        criterion (`str`, *optional*, defaults to `"auto"`):
            What ranks the neurons, of auto, width, depth, random; 'auto' is width and depth.
        operator (`str`, *optional*, defaults to `"auto"`):
            How neurons grow, of auto, zero_gain, residual_pair, opposed_pair, split, net2net, gradmax; 'auto' fits the
            criterion. Or how whole blocks are inserted: block_copy, block_identity, block_average, block_stack.
        freeze (`bool`, *optional*, defaults to `False`):
            Train only inserted blocks from the first event on; for the operators of blocks.
        selection (`str`, *optional*, defaults to `"auto"`):
            How neurons are chosen: 'pursuit', by what they add to those already chosen, as long as held-out samples
            gain; 'gain', one by one, until the budget is spent; 'auto' is pursuit where it is possible.
        natural_step (`float`, *optional*, defaults to 0.5):
            Share of the natural step that splits and new gains take at once; with 0 new units start at rest.
        significance (`float`, *optional*, defaults to 2.0):
            Standard errors by which an eigenvalue must differ from zero.
        probe_samples (`int`, *optional*, defaults to 1024):
            Training samples that the curvature is measured on.
        probe_batch_size (`int`, *optional*, defaults to 64):
            Batch size of the measurement.
        growth_seed (`int`, *optional*, defaults to 0):
            Seed of probe samples, start vectors and random controls.

    Raises:
        ValueError: If a field has a value that cannot be meant; the message names the field and the remedy.
    """

    linears: list[str] | None = field(
        default=None,
        metadata=help_("Linears that may grow, by their names in a layer, such as 'mlp.fc1'; all if None."),
    )
    layers: list[int] | None = field(
        default=None, metadata=help_("Layers that may grow, counted from 0; all if None.")
    )
    max_depth: int = field(default=2, metadata=help_("Branches that may be nested; 0 allows width only."))
    criterion: str = field(
        default="auto",
        metadata=help_(f"What ranks the neurons, of {', '.join(CRITERIA)}; 'auto' is width and depth."),
    )
    operator: str = field(
        default="auto",
        metadata=help_(
            f"How neurons grow, of auto, {', '.join(OPERATORS)}; 'auto' fits the criterion. Or how whole blocks are "
            f"inserted: {', '.join(BLOCK_OPERATORS)}."
        ),
    )
    freeze: bool = field(
        default=False,
        kw_only=True,
        metadata=help_("Train only inserted blocks from the first event on; for the operators of blocks."),
    )
    selection: str = field(
        default="auto",
        metadata=help_(
            "How neurons are chosen: 'pursuit', by what they add to those already chosen, as long as held-out samples "
            "gain; 'gain', one by one, until the budget is spent; 'auto' is pursuit where it is possible."
        ),
    )
    natural_step: float = field(
        default=0.5,
        metadata=help_(
            "Share of the natural step that splits and new gains take at once; with 0 new units start at rest."
        ),
    )
    significance: float = field(
        default=2.0, metadata=help_("Standard errors by which an eigenvalue must differ from zero.")
    )
    probe_samples: int = field(default=1024, metadata=help_("Training samples that the curvature is measured on."))
    probe_batch_size: int = field(default=64, metadata=help_("Batch size of the measurement."))
    growth_seed: int = field(default=0, metadata=help_("Seed of probe samples, start vectors and random controls."))

    _argument_group_name = "growth"  # of `HfArgumentParser`

    # What a `PaperGrowthConfig` has as fields: here every layer with a candidate may grow, and all share one budget.
    layer_threshold = 1
    quotas = False
    step_size = 0.2
    directions = "whitened"
    known_criteria: ClassVar[tuple[str, ...]] = CRITERIA

    def __post_init__(self) -> None:
        self.settle_schedule()
        self._check_choices()
        self._check_numbers()
        self.check_limits()
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

        self._check_blocks()

    def _check_blocks(self) -> None:
        """Refuse options of neurons for blocks, and the other way round."""
        if self.freeze and not self.inserts_blocks:
            raise ValueError(f"`freeze=True` goes with an operator of blocks: {', '.join(BLOCK_OPERATORS)}.")
        if not self.inserts_blocks:
            return
        given = {"criterion": self.criterion != "auto", "linears": self.linears is not None}
        given |= {"selection": self.selection != "auto", "quotas": self.quotas}
        wrong = [f"`{name}`" for name, is_given in given.items() if is_given]
        if wrong:
            raise ValueError(
                f"`operator={self.operator!r}` inserts whole blocks, which are ranked by their own gain: leave out "
                f"{', '.join(wrong)}. `layers` says behind which blocks."
            )

    def _check_choices(self) -> None:
        choices = {
            "criterion": self.known_criteria,
            "operator": ("auto", *OPERATORS, *BLOCK_OPERATORS),
            "selection": SELECTIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if not isinstance(self.freeze, bool):
            raise ValueError(f"`freeze` must be True or False, got {self.freeze!r}.")
        # Lists, as a checkpoint keeps them.
        for name in ("linears", "layers"):
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))
        if self.linears is not None and not is_list(self.linears, lambda name: isinstance(name, str)):
            raise ValueError(f"`linears` must be None or a list of names such as 'mlp.fc1', got {self.linears!r}.")
        if self.layers is not None and not is_list(self.layers, lambda index: is_int(index) and index >= 0):
            raise ValueError(f"`layers` must be None or a list of indices of layers, got {self.layers!r}.")

    def _check_numbers(self) -> None:
        bounds = {
            "max_depth": (0, MAX_SKIP_DEPTH, True),
            "significance": (0, math.inf, False),
            "natural_step": (0, 1, False),
            "probe_samples": (8 if self.judged else 4, math.inf, True),  # some choose, others judge
            "probe_batch_size": (1, math.inf, True),
            "growth_seed": (0, 2**63 - 1, True),
        }
        check_bounds(self, bounds)

    @staticmethod
    def paper() -> "PaperGrowthConfig":
        """
        The settings of arXiv 2402.12418 for 300 epochs: events at epochs 50, 80, …, 290, each with 580,000 parameters
        times the learning rate relative to its peak, in four quotas, residual pairs in layers with 60 candidates.
        Its start is the reduced DeiT-S, `SaddleViTConfig(**PAPER_START)`.
        """
        from .paper import PaperGrowthConfig  # which is made of this class

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
    def inserts_blocks(self) -> bool:
        """Whether events insert whole blocks; otherwise neurons grow."""
        return self.operator in BLOCK_OPERATORS

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
        if self.inserts_blocks:
            return ("the gain of blocks",)
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
        if self.inserts_blocks:
            return False
        if self.operator != "auto":
            return OPERATORS[self.operator].scaled is not None
        return self.criterion not in ("paper_score", "gradmax")

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
        from .paper import PaperGrowthConfig  # which is made of this class

        known = [item.name for item in fields(PaperGrowthConfig)]
        current, lost = current_names(values, known)
        refuse(values, lost)
        unknown = sorted(set(current) - set(known))
        if unknown:
            raise ValueError(f"GrowthConfig has no field {', '.join(unknown)}; it was written by another version.")
        plain, rules = current_names(current, [item.name for item in fields(cls)])
        needed = rules or current.get("criterion", "auto") not in CRITERIA
        return PaperGrowthConfig(**current) if needed else cls(**plain)
