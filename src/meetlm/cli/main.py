"""The command group ``main``, which prints errors caused by the input as one message. Each command has its own module.

Commands import heavy libraries only when they run, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import redirect_stdout
from types import FrameType

import click

from meetlm.config.errors import LevelChoiceError, MeetError
from meetlm.config.world import World, is_lost_connection

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
EXIT_CODES = (
    "Exit codes: 0 success; 1 an error in data, settings or files, or a problem found by `meet doctor`; 2 wrong usage; "
    "130 interrupted (Ctrl-C); 143 terminated (SIGTERM). Results go to stdout, messages and progress to stderr."
)
RESUMABLE = (
    "train",
    "demo",
    "sweep",
    "search",
    "generate",
    "dial",
    "sweep-temperature",
    "evaluate",
    "reward",
    "rollout",
    "improve",
)
"""Commands that continue after an interruption if they are run again."""
DISTRIBUTED = ("train", "generate", "score", "reward")
"""Commands that run in several processes."""
GRACE = 3.0
"""Seconds for which a process waits with an error that another process may have had first, for that to be reported."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


class _Group(click.Group):
    """A group that prints errors caused by the input as one message and exits with code 1."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse a command that runs in one process only."""
        name, command, rest = super().resolve_command(ctx, args)
        size = World.from_environment().size
        if size > 1 and name not in DISTRIBUTED:
            raise click.UsageError(
                f"`meet {name}` runs in one process, but WORLD_SIZE is {size}; commands that run in several: "
                f"{', '.join(DISTRIBUTED)}"
            )
        return name, command, rest

    def invoke(self, ctx: click.Context) -> object:
        world = World.from_environment()
        is_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, _terminate) if is_main else None
        try:
            if world.is_main:
                return super().invoke(ctx)
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # the main process prints results
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            saved = (
                ": finished work is saved, training up to its last checkpoint. Run the same command again to continue"
            )
            is_terminated = isinstance(error, _Terminated)
            text = "terminated" if is_terminated else "interrupted"
            click.echo(f"\n{text}{saved if ctx.invoked_subcommand in RESUMABLE else ''}.", err=True)
            sys.exit(TERMINATED if is_terminated else INTERRUPTED)
        except LevelChoiceError as error:
            message = error.option_message
        except MeetError as error:
            message = str(error)
        except OSError as error:
            if error.filename is None:
                raise
            message = f"{error.filename}: {error.strerror}"
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            time.sleep(GRACE)
            message = "another process of the job has ended; run the same command again to continue"
        finally:
            if is_main:
                signal.signal(signal.SIGTERM, before)
        if world.size > 1:
            message = f"{world}: {message}"
            if not world.is_main:
                time.sleep(GRACE)
        click.echo(f"error: {message}", err=True)
        sys.exit(1)


@click.group(
    cls=_Group,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="meetlm", prog_name="meet")
def main() -> None:
    """Align language models with levels of preference that can be chosen, mixed and extrapolated at inference."""
