"""The command ``meet``: parse, call, print. The only room that prints."""

import os

# Before torch is loaded: its threads spin for long while they wait by default, and two such programs on the same cores
# slow each other down tenfold and more. A short spin costs a program that is alone hardly anything (LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from meetlm.cli.main import main  # noqa: E402

__all__ = ["main"]
