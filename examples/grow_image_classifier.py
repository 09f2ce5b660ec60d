"""Grow an image classifier while it trains, save it, reload it, and show what grew.

    python examples/grow_image_classifier.py --output_dir outputs/demo
    python examples/grow_image_classifier.py --output_dir outputs/fashion --dataset fashion-mnist --image_size 28
    torchrun --nproc_per_node 2 examples/grow_image_classifier.py --output_dir outputs/demo --use_cpu

Every field of `GrowthConfig` and of HF's `TrainingArguments` is an option; `--help` lists them.
"""

from transformers import HfArgumentParser, TrainingArguments

from hf_saddle import GrowthConfig
from hf_saddle.training.run import ModelAndDataArguments, train_and_grow


# A small model on small data: many passes, a short warm-up, and an early first growth.
DEFAULTS = {
    "num_train_epochs": 30,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 128,
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "warmup_steps": 40,
    "lr_scheduler_type": "cosine",
    "eval_strategy": "epoch",
    "logging_steps": 50,
    "save_strategy": "no",
    "report_to": "none",
    "warmup": 6,
    "interval": 6,
    "num_events": 3,
}


def main() -> None:
    parser = HfArgumentParser((ModelAndDataArguments, GrowthConfig, TrainingArguments))
    parser.set_defaults(**DEFAULTS)
    result = train_and_grow(*parser.parse_args_into_dataclasses())
    if not result.trainer.is_world_process_zero():
        return
    print(result.history.table())
    print(f"test accuracy: {result.metrics['test_accuracy']:.4f}")
    print(f"saved to {result.trainer.args.output_dir}; largest difference after reloading: {result.reload_difference}")


if __name__ == "__main__":
    main()
