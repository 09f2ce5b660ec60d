"""Growth inside HF `Trainer` and Accelerate: the only place that knows them."""

from .callback import GrowthCallback
from .event import growth_event_
from .probe import probe_batches
from .trainer import GrowthTrainer


__all__ = ["GrowthCallback", "GrowthTrainer", "growth_event_", "probe_batches"]
