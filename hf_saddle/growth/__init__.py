"""Growing: planning under a budget, surgery, optimizer state and history. Nothing here knows a trainer."""

from .config import PAPER_START, GrowthConfig, PaperGrowthConfig
from .costs import count_parameters
from .event import GrowthEvent
from .head_choice import plan_heads
from .head_scores import HeadScores, score_heads
from .heads import grow_heads_, head_growth
from .history import GrowthHistory
from .line_search import line_search, probe_loss
from .macs import count_macs
from .merge import merge_pairs_
from .optimizer_rebind import rebind_optimizer_
from .optimizer_state import carry_optimizer_state_
from .padding import to_stock
from .plan import GrowthPlan, LayerGrowth
from .planner import event_budget, plan_growth
from .surgery import PreparedGrowth, grow_, prepare_growth, record_


__all__ = [
    "PAPER_START",
    "GrowthConfig",
    "GrowthEvent",
    "GrowthHistory",
    "GrowthPlan",
    "HeadScores",
    "LayerGrowth",
    "PaperGrowthConfig",
    "PreparedGrowth",
    "carry_optimizer_state_",
    "count_macs",
    "count_parameters",
    "event_budget",
    "grow_",
    "grow_heads_",
    "head_growth",
    "line_search",
    "merge_pairs_",
    "plan_growth",
    "plan_heads",
    "prepare_growth",
    "probe_loss",
    "rebind_optimizer_",
    "record_",
    "score_heads",
    "to_stock",
]
