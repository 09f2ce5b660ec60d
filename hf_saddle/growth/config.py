"""When, where, how and how much a model grows: options only, with pure functions of them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..models.shape_checks import MAX_SKIP_DEPTH
from .kinds import Kinds, check_kinds, kinds_of, names_of
from .limits import Limits
from .old_names import accepts_old_names, current_names, refuse
from .operators import SCALED
from .values import check_bounds, explained, is_int, is_list


if TYPE_CHECKING:
    from .paper import PaperGrowthConfig

CRITERIA = ("auto", "width", "depth", "random")
SELECTIONS = ("auto", "pursuit", "gain")


@accepts_old_names
@explained
@dataclass
class GrowthConfig(Limits):
    """
    When, where, how and how much a model grows. Usable with `HfArgumentParser`.

    An *event* is one growth of the whole model; a *linear* is one that can grow, such as `mlp.fc1` of layer 3. Layers
    are those of an architecture: blocks of attention and an MLP, or of convolutions, counted over all stages and over
    encoder and decoder.

    Args:
        at (`list[float]`, *optional*):
            When events happen, in `unit`, in rising order; 0.1 0.25 0.4 of the training if None.
        unit (`str`, *optional*, defaults to `"training"`):
            Unit of `at`: shares of the 'training', 'epochs' or 'steps'.
        max_growth (`float`, *optional*, defaults to 1.5):
            Final number of parameters as a multiple of that before the first event; `max_parameters` and `max_macs`
            take its place. None for no limit.
        max_parameters (`float`, *optional*):
            Final number of parameters.
        max_macs (`float`, *optional*):
            Final number of multiply-accumulates of one sample.
        event_budget (`float`, *optional*):
            Parameters that one event may add, multiply-accumulates with `max_macs`; a share of what is left if None.
        budget_unit (`str`, *optional*, defaults to `"auto"`):
            'seconds' of a training step instead of parameters, for `max_growth` and `event_budget`, timed for each
            kind of growth on this machine; 'auto' counts parameters, multiply-accumulates with `max_macs`.
        linears (`list[str]`, *optional*):
            Linears that may grow, by their names in a layer, such as 'mlp.fc1'; all if None.
        layers (`list[int]`, *optional*):
            Layers that may grow, counted from 0; all if None.
        max_depth (`int`, *optional*, defaults to 2):
            Branches that may be nested; 0 allows width only.
        criterion (`str`, *optional*, defaults to `"auto"`):
            What ranks the neurons, of auto, width, depth, random; 'auto' is width and depth.
        operator (`str` or `list[str]`, *optional*, defaults to `"auto"`):
            What grows, and how. Neurons: zero_gain, residual_pair, opposed_pair, split, net2net, gradmax; 'auto' fits
            the criterion. Attention heads: new_head, split_head. Whole blocks: block_copy, block_identity,
            block_average, block_stack. Several compete for the budget of each event; 'any' is auto, new_head,
            split_head and block_copy, as far as the model can.
        freeze (`bool`, *optional*, defaults to `False`):
            Train only inserted blocks from the first event on; for the operators of blocks.
        selection (`str`, *optional*, defaults to `"auto"`):
            How neurons are chosen: 'pursuit', by what they add to those already chosen, as long as held-out samples
            gain; 'gain', one by one, until the budget is spent; 'auto' is pursuit where it is possible. With an
            operator of blocks alone, 'gain' spends the budget likewise.
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

    linears: list[str] | None = None
    layers: list[int] | None = None
    max_depth: int = 2
    criterion: str = "auto"
    operator: str | list[str] = field(
        default="auto",
        # Once more, as `HfArgumentParser` does not take it from the field where several may be given.
        metadata={"default": "auto"},
    )
    freeze: bool = field(default=False, kw_only=True)
    selection: str = "auto"
    natural_step: float = 0.5
    significance: float = 2.0
    probe_samples: int = 1024
    probe_batch_size: int = 64
    growth_seed: int = 0

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
        check_kinds(self)

    def _check_choices(self) -> None:
        choices = {
            "criterion": self.known_criteria,
            "selection": SELECTIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        names = names_of(self.operator)
        self.operator = names if len(names) > 1 else names[0]
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
        Its start is the reduced DeiT-S, `SaddleViTConfig.reduced_deit_small()`.
        """
        from .paper import recipe  # which is made of this class

        return recipe()

    @property
    def kinds(self) -> Kinds:
        """The operators, by what grows."""
        return kinds_of(self.operator)

    @property
    def criteria(self) -> tuple[str, ...]:
        """What [`analyze_curvature`] has to measure."""
        drawn = self.directions == "random" and self.criterion != "random"
        return (*self.ranking, "random") if drawn else self.ranking

    @property
    def ranking(self) -> tuple[str, ...]:
        """The criteria that rank the neurons; of heads and blocks alone, their own gain."""
        if self.criterion != "auto":
            return (self.criterion,)
        return self.kinds.ranking() or ("their own gain",)

    @property
    def pursues(self) -> bool:
        """Whether neurons are chosen by what they add to others; controls are ranked by their own scores."""
        by_curvature = self.criterion in ("auto", "width", "depth")
        return by_curvature and {*self.kinds.neurons} <= {"auto", "zero_gain", "split"} and self.selection != "gain"

    @property
    def judged(self) -> bool:
        """Whether half of the probe judges what the other half has chosen; not where nothing can move at once."""
        kinds = self.kinds
        if kinds.several or self.budget_unit == "seconds":
            return True
        if kinds.only_blocks:
            return False
        if kinds.neurons != ("auto",):
            return any(name in SCALED for name in kinds.neurons)
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
