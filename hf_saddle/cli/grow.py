"""`hf-saddle grow`: train an image classifier that grows, and leave a complete folder behind."""

import typer

from ..training.run import run


def grow(context: typer.Context) -> None:
    """
    Train an image classifier that grows, test it, save it with its card, and verify what was saved.

    All fields of `GrowthConfig` and `TrainingArguments` are options: `hf-saddle grow --help` lists them.
    Example: `hf-saddle grow --output_dir outputs/demo`
    """
    typer.echo(run(context.args, prog="hf-saddle grow"))
