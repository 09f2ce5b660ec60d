"""Growing: planning under a budget, surgery, optimizer state and history. Nothing here knows a trainer."""

from .block_gains import BlockCandidate, block_candidates
from .block_planner import plan_blocks
from .block_records import NewBlock
from .config import PAPER_START, GrowthConfig, PaperGrowthConfig
from .costs import count_parameters
from .event import GrowthEvent
from .expand import insert_blocks_
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
    "BlockCandidate",
    "GrowthConfig",
    "GrowthEvent",
    "GrowthHistory",
    "GrowthPlan",
    "LayerGrowth",
    "NewBlock",
    "PaperGrowthConfig",
    "PreparedGrowth",
    "block_candidates",
    "carry_optimizer_state_",
    "count_macs",
    "count_parameters",
    "event_budget",
    "grow_",
    "grow_heads_",
    "head_growth",
    "insert_blocks_",
    "line_search",
    "merge_pairs_",
    "plan_blocks",
    "plan_growth",
    "prepare_growth",
    "probe_loss",
    "rebind_optimizer_",
    "record_",
    "to_stock",
]
