"""The command ``meet``: parse, call, print. The only room that prints."""

from meetlm.cli.main import main

__all__ = ["main"]
