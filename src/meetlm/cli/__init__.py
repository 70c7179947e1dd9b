"""The command ``meet``: parse, call, print. The only room that prints."""

import os

# Before torch is loaded: its threads spin while they wait by default, and two such programs on the same cores slow
# each other down tenfold and more.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from meetlm.cli.main import main  # noqa: E402

__all__ = ["main"]
