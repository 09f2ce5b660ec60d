"""The commands of `hf-saddle`, and how their errors reach the user: one line, no traceback, exit code 1."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from .convert import convert
from .export import export
from .grow import grow
from .measure import analyze, inspect
from .share import card, push


app = typer.Typer(
    help="Vision transformers that grow while they train: look at them, grow them, convert them, share them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(inspect)
app.command()(analyze)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)(grow)
app.command()(card)
app.command()(push)
app.command()(convert)
app.command()(export)


def main(arguments: list[str] | None = None) -> None:
    """Run `hf-saddle`; exits with 1 for what the user can mend and with 2 for a command that is not understood."""
    try:
        app(arguments)
    except (ValueError, OSError, ImportError) as error:
        # What the user can mend: files, names, tokens, connections and packages. Hub errors are `OSError`s.
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
