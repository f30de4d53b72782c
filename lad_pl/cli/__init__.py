"""The command line."""

from lad_pl.cli.main import main

__all__ = ["main"]
