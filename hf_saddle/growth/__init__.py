"""Growing: planning under a budget, surgery, optimizer state and history. Nothing here knows a trainer."""

from .budget import event_budget
from .choice.block_gains import BlockCandidate, block_candidates
from .choice.block_planner import plan_blocks
from .choice.halves import halves
from .choice.head_choice import plan_heads
from .choice.head_scores import HeadScores, score_heads
from .choice.natural_step import score_growths, take_natural_step
from .choice.planner import candidate_growths, plan_growth
from .choice.probe_loss import probe_loss
from .config import GrowthConfig
from .counting import count_macs, count_parameters
from .optimizer.rebind import rebind_optimizer_
from .optimizer.state import carry_optimizer_state_
from .paper import PaperGrowthConfig
from .records.block_records import NewBlock
from .records.event import GrowthEvent
from .records.history import GrowthHistory
from .records.layer_growth import LayerGrowth
from .records.plan import GrowthPlan
from .surgery.expand import insert_blocks_
from .surgery.grow import PreparedGrowth, grow_, prepare_growth, record_
from .surgery.heads import grow_heads_, head_growth
from .surgery.merge import merge_pairs_
from .surgery.padding import to_stock


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
