"""The command `hf-saddle`; it stands beside the library, since `import hf_saddle` loads torch and transformers."""

import sys
from importlib.util import find_spec


def main(arguments: list[str] | None = None) -> None:
    """Run `hf-saddle`; exits with 1 for what the user can mend and with 2 for a command that is not understood."""
    if find_spec("typer") is None or find_spec("rich") is None:
        sys.exit("error: The command hf-saddle needs typer and rich; `pip install 'hf_saddle[cli]'` brings them.")
    from .app import run

    run(arguments)


__all__ = ["main"]
