"""The commands of `hf-saddle`, and how their errors reach the user: one line, no traceback, exit code 1."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from .commands import analyze, card, compare, convert, export, grow, inspect, push, report


app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)
app.command()(inspect)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(analyze)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)(grow)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)(
    compare
)
app.command()(card)
app.command()(report)
app.command()(push)
app.command()(convert)
app.command()(export)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf_saddle {version('hf_saddle')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Models that grow while they train: look at them, grow them, convert them, share them."""


def _hyphened(word: str) -> str:
    """Names of options with underscores, as HF's programs have them, are those with hyphens."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def run(arguments: list[str] | None = None) -> None:
    """Run a command line, by default that of the process."""
    try:
        app([_hyphened(word) for word in (sys.argv[1:] if arguments is None else arguments)])
    except (ValueError, OSError, ImportError) as error:
        # What the user can mend: files, names, tokens, connections and packages. Hub errors are `OSError`s.
        from rich.console import Console
        from rich.markup import escape

        from hf_saddle.hub.escape import plain

        # Files of others may be quoted in it, with what a terminal would obey.
        line = escape(plain(error, limit=sys.maxsize))
        Console(stderr=True).print(f"[bold red]error:[/] {line}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
