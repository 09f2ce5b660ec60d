"""The command `hf-saddle`."""

from .app import main


__all__ = ["main"]
