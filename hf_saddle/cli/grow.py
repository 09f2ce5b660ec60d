"""`hf-saddle grow`: train an image classifier that grows, and leave a complete folder behind."""

import typer
from transformers import HfArgumentParser, TrainingArguments

from ..growth import GrowthConfig
from ..training.run import ModelAndDataArguments, train_and_grow


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


def grow(context: typer.Context) -> None:
    """
    Train an image classifier that grows, test it, save it with its card, and verify what was saved.

    All fields of `GrowthConfig` and `TrainingArguments` are options: `hf-saddle grow --help` lists them.
    Example: `hf-saddle grow --output_dir outputs/demo`
    """
    parser = HfArgumentParser((ModelAndDataArguments, GrowthConfig, TrainingArguments), prog="hf-saddle grow")
    parser.set_defaults(**DEFAULTS)
    arguments, growth, training = parser.parse_args_into_dataclasses(context.args)
    result = train_and_grow(arguments, growth, training)
    trainer = result.trainer
    if not trainer.is_world_process_zero():
        return
    trainer.create_model_card(dataset=arguments.dataset, finetuned_from=arguments.model_name_or_path)
    typer.echo(result.history.table())
    typer.echo(f"test accuracy: {result.metrics['test_accuracy']:.4f}")
    typer.echo(f"saved to {training.output_dir}; largest difference after reloading: {result.reload_difference}")
