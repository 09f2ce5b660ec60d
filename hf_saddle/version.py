"""The version of the package, for the histories and cards that name it."""

__version__ = "0.2.0"
