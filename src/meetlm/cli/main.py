"""The command group; each command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from meetlm.cli import inspect
from meetlm.cli.configured import configured
from meetlm.cli.demo import demo, demo_data
from meetlm.cli.evaluate import evaluate
from meetlm.cli.held_out import data_given, held_out
from meetlm.cli.numbers import finite
from meetlm.cli.paper import paper
from meetlm.cli.plan import plan
from meetlm.cli.recipes import recipes
from meetlm.cli.reward import reward
from meetlm.cli.sweep import search, sweep
from meetlm.cli.temperature import sweep_temperature
from meetlm.config.errors import MeetError

_OVERRIDES = {"ignore_unknown_options": True}
_RECIPES = "`meet recipes` lists the recipes."


class _Group(click.Group):
    """Prints an error of the input as text and leaves with status 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MeetError as error:
            said = str(error)
        except OSError as error:
            if error.filename is None:
                raise
            said = f"{error.filename}: {error.strerror}"
        except ValueError as error:
            said = _of_settings(error)
            if not said:
                raise
        click.echo(f"error: {said}", err=True)
        sys.exit(1)


def _of_settings(error: ValueError) -> str:
    """Return what settings of a wrong value are told; nothing for another error."""
    from pydantic import ValidationError

    from meetlm.config.settings import problems

    if not isinstance(error, ValidationError):
        return ""
    return "\n".join(f"{'.'.join(map(str, (error.title, *loc)))}: {what}" for loc, what in problems(error))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="meetlm")
def main() -> None:
    """Align language models with a dial: one control per level of preference, trained in MEET's two steps."""


@main.command(context_settings=_OVERRIDES, epilog=_RECIPES, short_help="Train a recipe, any setting overridden.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[RECIPE] [KEY=VALUE]...")
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help="A YAML file over the recipe, or instead of it."
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder  [default: runs/RECIPE].")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def train(words: tuple[str, ...], file: Path | None, out: Path | None, quiet: bool) -> None:
    """Train RECIPE, or what --config says, with any setting overridden.

    \b
    meet train hh-meet-lora --out runs/lora
    meet train hh-meet-lora --data.path ../hh-rlhf --preset small
    meet train --config mine.yaml stages.step1.lr=3e-3

    Every setting can be given as KEY=VALUE or --KEY VALUE; `meet config RECIPE` lists them with what they mean. The
    most common:

    \b
    --preset small            rates, lengths and batch sizes for little data; or paper
    --model.name smollm2      a hub name, a folder, or smollm2
    --data.path ../hh-rlhf    a hub name, a folder in the hub's layout, or a file
    --data.limit_train 2000   the first so many usable pairs
    --batch.pairs 16          pairs in an optimizer step
    --stages.step1.lr 3e-3    the rate of a stage
    --seed 1                  of initial controls, data order and dropout

    An interrupted run goes on where it was when the same command is given again.
    """  # noqa: D301  click's mark is a real backspace
    from meetlm.cli.progress import quiet_libraries

    config = configured(words, file)
    quiet_libraries()
    from meetlm.run.execute import execute

    execute(config, out or Path("runs") / config.recipe, say=click.echo, progress=not quiet)


@main.command("config", context_settings=_OVERRIDES, epilog=_RECIPES, short_help="Print a recipe's every setting.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[RECIPE] [KEY=VALUE]...")
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help="A YAML file over the recipe, or instead of it."
)
def show_config(words: tuple[str, ...], file: Path | None) -> None:
    """Print the whole configuration that `meet train` would run, as YAML with what each setting means.

    \b
    meet config hh-meet-lora
    meet config hh-meet-lora --preset small --control.rank 8 > mine.yaml
    meet train --config mine.yaml
    """  # noqa: D301  click's mark is a real backspace
    config = configured(words, file)
    from meetlm.config.describe import describe

    click.echo(describe(config), nl=False)


@main.command(short_help="Write a run's completions of prompts under a level.")
@click.argument("run", type=click.Path(path_type=Path))
@held_out("the run's own")
@click.option("--level", help="A level's name, or weights such as good=1.5,bad=-0.5  [default: the run's].")
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Most new tokens.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    callback=finite,
    help="0 takes the likeliest token.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Sample from the smallest set of this much probability.",
)
@click.option("--seed", type=inspect.SEED, default=0, show_default=True, help="Of the random streams.")
@click.option("--limit", type=click.IntRange(1), help="The first so many prompts only.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Prompts at once.")
@click.option("--out", type=click.Path(path_type=Path), help="Where  [default: RUN/completions/LEVEL-….jsonl].")
def generate(
    run: Path,
    level: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    limit: int | None,
    batch_size: int,
    out: Path | None,
    **given: str | None,
) -> None:
    """Write RUN's completions of the prompts in --data (default: the run's own held-out ones) under a level.

    A bare prompt is put as the run's data put prompts: on HH's transcripts as what the human says, on conversations as
    one user message. Rows without a prompt or with an earlier one's are left out and named, as are prompts of the
    run's own that are too long for it.

    \b
    meet generate runs/lora --level good
    meet generate runs/lora --data Anthropic/hh-rlhf --subset harmless-base
    meet generate runs/lora --data prompts.jsonl --level good=1.5,bad=-0.5 --temperature 0.7 --top-p 0.95
    """  # noqa: D301  click's mark is a real backspace
    from meetlm.cli.progress import bar, quiet_libraries
    from meetlm.generation.sampling import Sampling

    quiet_libraries()
    from meetlm.run.completions import parse_level, write_completions

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    with bar("generate") as on_done:
        path, count = write_completions(
            run,
            data_given(given),
            parse_level(level),
            sampling,
            seed=seed,
            limit=limit,
            batch_size=batch_size,
            out=out,
            on_done=on_done,
            on_total=on_done.expect,
            say=lambda text: click.echo(text, err=True),
        )
    for line in path.read_bytes().splitlines()[:2]:
        click.echo(f"{json.loads(line)['completion']!r}")
    click.echo(f"{count} completions in {path}, the first of them above")


for command in (
    inspect.data,
    inspect.doctor,
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
