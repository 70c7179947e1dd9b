"""The command group; each command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import sys

import click

from meetlm.cli.data import data
from meetlm.cli.demo import demo, demo_data
from meetlm.cli.doctor import doctor
from meetlm.cli.evaluate import evaluate
from meetlm.cli.generate import chat, generate
from meetlm.cli.paper import paper
from meetlm.cli.plan import plan
from meetlm.cli.recipes import recipes
from meetlm.cli.reward import reward
from meetlm.cli.sweep import search, sweep
from meetlm.cli.temperature import sweep_temperature
from meetlm.cli.train import show_config, train
from meetlm.config.errors import MeetError

INTERRUPTED = 130
EXIT_CODES = (
    "Exit codes: 0 success; 1 an error in data, settings or files, or a problem found by `meet doctor`; 2 wrong usage; "
    "130 interrupted. Results are printed on stdout, messages and progress on stderr."
)


class _Group(click.Group):
    """Prints an error that the input caused as one message and exits with code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(f"\ninterrupted{_how_to_continue(ctx)}", err=True)
            sys.exit(INTERRUPTED)
        except MeetError as error:
            message = str(error)
        except OSError as error:
            if error.filename is None:
                raise
            message = f"{error.filename}: {error.strerror}"
        except ValueError as error:
            message = _settings_problems(error)
            if not message:
                raise
        click.echo(f"error: {message}", err=True)
        sys.exit(1)


def _how_to_continue(ctx: click.Context) -> str:
    """Return what an interrupted command has saved; nothing for a command that saves nothing."""
    command = ctx.invoked_subcommand
    if command not in RESUMABLE:
        return "."
    return f": {RESUMABLE[command]}. Run the same command again to continue."


RESUMABLE = {
    "train": "the run is saved up to its last checkpoint",
    "demo": "the run is saved up to its last checkpoint",
    "sweep": "finished runs are saved, the current one up to its last checkpoint",
    "search": "finished trials are saved, the current one up to its last checkpoint",
    "generate": "the completions so far are saved",
    "sweep-temperature": "the completions and scores so far are saved",
    "evaluate": "the scores and the judge's answers so far are saved",
    "reward": "training is saved up to its last checkpoint",
}
"""What a command has saved when it is interrupted."""


def _settings_problems(error: ValueError) -> str:
    """Return the problems of settings as lines of text; nothing for another error."""
    from pydantic import ValidationError

    from meetlm.config.settings import problems

    if not isinstance(error, ValidationError):
        return ""
    return "\n".join(f"{'.'.join(map(str, (error.title, *loc)))}: {text}" for loc, text in problems(error))


@click.group(
    cls=_Group,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="meetlm", prog_name="meet")
def main() -> None:
    """Align language models with levels of preference that can be chosen, mixed and extrapolated at inference."""


for command in (
    train,
    show_config,
    generate,
    chat,
    data,
    doctor,
    demo,
    demo_data,
    recipes,
    sweep,
    search,
    plan,
    evaluate,
    sweep_temperature,
    reward,
    paper,
):
    main.add_command(command)
