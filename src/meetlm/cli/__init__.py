"""The command ``meet``: parse, call, print. The only room that prints."""

from meetlm.config.process import prepare

prepare()  # before anything imports torch

from meetlm.cli.main import main  # noqa: E402

__all__ = ["main"]
