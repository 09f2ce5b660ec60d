"""The arms that are compared: which DeiT-S starts, and how it grows."""

from dataclasses import dataclass, replace

from hf_saddle.growth import GrowthConfig, PaperGrowthConfig


@dataclass(frozen=True)
class Arm:
    """A start and its growth."""

    halved: bool  # q, k, v and fc1 at half the width of DeiT
    growth: PaperGrowthConfig | None


_PAPER = GrowthConfig.paper()
# The library's own criterion and operators, at the times and with the budgets of the paper.
_DEFAULT = PaperGrowthConfig(
    at=_PAPER.at,
    unit=_PAPER.unit,
    max_growth=_PAPER.max_growth,
    event_budget=_PAPER.event_budget,
    schedule=_PAPER.schedule,
)

ARMS = {
    "uniform-small": Arm(halved=True, growth=None),
    "uniform-full": Arm(halved=False, growth=None),
    "paper": Arm(halved=True, growth=_PAPER),
    "default": Arm(halved=True, growth=_DEFAULT),
    "random": Arm(halved=True, growth=replace(_DEFAULT, criterion="random")),
}
