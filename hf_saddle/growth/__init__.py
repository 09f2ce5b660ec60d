"""Growing: planning under a budget, surgery, optimizer state and history. Nothing here knows a trainer."""

from .block_gains import BlockCandidate, block_candidates
from .block_planner import plan_blocks
from .block_records import NewBlock
from .budget import event_budget
from .config import GrowthConfig
from .costs import count_parameters
from .event import GrowthEvent
from .expand import insert_blocks_
from .halves import halves
from .head_choice import plan_heads
from .head_scores import HeadScores, score_heads
from .heads import grow_heads_, head_growth
from .history import GrowthHistory
from .layer_growth import LayerGrowth
from .macs import count_macs
from .merge import merge_pairs_
from .natural_step import score_growths, take_natural_step
from .optimizer_rebind import rebind_optimizer_
from .optimizer_state import carry_optimizer_state_
from .padding import to_stock
from .paper import PaperGrowthConfig
from .plan import GrowthPlan
from .planner import candidate_growths, plan_growth
from .probe_loss import probe_loss
from .surgery import PreparedGrowth, grow_, prepare_growth, record_


__all__ = [
    "BlockCandidate",
    "GrowthConfig",
    "GrowthEvent",
    "GrowthHistory",
    "GrowthPlan",
    "HeadScores",
    "LayerGrowth",
    "NewBlock",
    "PaperGrowthConfig",
    "PreparedGrowth",
    "block_candidates",
    "candidate_growths",
    "carry_optimizer_state_",
    "count_macs",
    "count_parameters",
    "event_budget",
    "grow_",
    "grow_heads_",
    "halves",
    "head_growth",
    "insert_blocks_",
    "merge_pairs_",
    "plan_blocks",
    "plan_growth",
    "plan_heads",
    "prepare_growth",
    "probe_loss",
    "rebind_optimizer_",
    "record_",
    "score_growths",
    "score_heads",
    "take_natural_step",
    "to_stock",
]
