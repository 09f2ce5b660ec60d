"""Growth inside HF `Trainer` and Accelerate: the only place that knows them."""

from .callback import GrowthCallback
from .comparison import compare
from .events.event import grow_by_plan_, growth_event_, plan_event
from .events.loss import training_loss
from .events.probe import probe_batches
from .resuming.checkpoints import last_whole_checkpoint, missing_parts
from .resuming.loop_checkpoints import register_growth_checkpointing
from .resuming.rebind import rebind_
from .sampling import training_indices
from .sharding.sharded import grow_by_plan_sharded_, growth_event_sharded_
from .trainer import GrowthTrainer
from .wrappers import rebuild_ddp_


__all__ = [
    "GrowthCallback",
    "GrowthTrainer",
    "compare",
    "grow_by_plan_",
    "grow_by_plan_sharded_",
    "growth_event_",
    "growth_event_sharded_",
    "last_whole_checkpoint",
    "missing_parts",
    "plan_event",
    "probe_batches",
    "rebind_",
    "rebuild_ddp_",
    "register_growth_checkpointing",
    "training_indices",
    "training_loss",
]
