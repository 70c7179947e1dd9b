"""The command group; each command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from meetlm.cli import inspect
from meetlm.cli.demo import demo, demo_data
from meetlm.config.errors import MeetError
from meetlm.recipes.names import recipe_names

_OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}


class _Group(click.Group):
    """Prints an error of the input as text and leaves with status 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MeetError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="meetlm")
def main() -> None:
    """Align language models with a dial: one control per level of preference, trained in MEET's two steps."""


@main.command(context_settings=_OVERRIDES, epilog=f"Recipes: {', '.join(recipe_names())}.")
@click.argument("recipe", required=False)
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help="A YAML file over the recipe, or instead of it."
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder  [default: runs/RECIPE].")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@click.pass_context
def train(ctx: click.Context, recipe: str | None, file: Path | None, out: Path | None, quiet: bool) -> None:
    """Train RECIPE, or what --config says, with any setting overridden.

    \b
    meet train hh-meet-lora --out runs/lora
    meet train hh-meet-lora --data.path ../hh-rlhf --preset small
    meet train --config mine.yaml stages.step1.lr=3e-3

    An interrupted run goes on where it was when the same command is given again.
    """  # noqa: D301  click's mark is a real backspace
    from meetlm.cli.progress import quiet_libraries
    from meetlm.recipes.config import load_config

    if recipe is None and file is None:
        raise click.UsageError("name a recipe or give --config FILE")
    words = list(ctx.args)
    if recipe is not None and ("=" in recipe or recipe.startswith("--")):
        words, recipe = [recipe, *words], None
    config = load_config(recipe, file, words)
    quiet_libraries()
    from meetlm.run.execute import execute

    execute(config, out or Path("runs") / config.recipe, say=click.echo, progress=not quiet)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Prompts: any preference file, or JSONL with 'prompt'.")
@click.option("--level", help="A level's name, or weights such as good=1.5,bad=-0.5  [default: the run's].")
@click.option("--max-new-tokens", default=128, show_default=True, help="Most new tokens.")
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-p", default=1.0, show_default=True, help="Sample from the smallest set of this much probability.")
@click.option("--seed", default=0, show_default=True, help="Of the random streams.")
@click.option("--limit", type=int, help="The first so many prompts only.")
@click.option("--batch-size", default=32, show_default=True, help="Prompts at once.")
@click.option("--out", type=click.Path(path_type=Path), help="Where  [default: RUN/completions/LEVEL-….jsonl].")
def generate(
    run: Path,
    data: Path | None,
    level: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    limit: int | None,
    batch_size: int,
    out: Path | None,
) -> None:
    """Write RUN's completions of the prompts in --data (default: the run's own held-out ones) under a level."""
    from meetlm.cli.progress import bar, quiet_libraries
    from meetlm.generation.sampling import Sampling

    quiet_libraries()
    from meetlm.run.completions import parse_level, write_completions

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    with bar("generate") as on_done:
        path, count = write_completions(
            run,
            data,
            parse_level(level),
            sampling,
            seed=seed,
            limit=limit,
            batch_size=batch_size,
            out=out,
            on_done=on_done,
        )
    click.echo(f"{count} completions in {path}")


main.add_command(inspect.data)
main.add_command(inspect.doctor)


main.add_command(demo)
main.add_command(demo_data)
