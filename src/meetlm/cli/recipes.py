"""``meet recipes``: which methods there are and what each does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, configure
from meetlm.recipes.names import about, data_names, method_names, recipe_files

if TYPE_CHECKING:
    from meetlm.recipes.config import RunConfig


@click.group(invoke_without_command=True, short_help="List the recipes, or show the stages of one.")
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the recipes: a method over a data set, such as hh-meet-lora.

    \b
    meet recipes
    meet recipes show tldr-dpo
    meet recipes show hh-coh --preset small
    """  # noqa: D301  click's mark is a real backspace
    if ctx.invoked_subcommand is not None:
        return
    first = data_names()[0]
    width = max(map(len, method_names()))
    click.echo("A recipe is DATA-METHOD, such as hh-meet-lora.\n\nData:")
    for name in data_names():
        click.echo(f"  {name:<{width}}  {about(recipe_files(f'{name}-{method_names()[0]}')[0])}")
    click.echo("\nMethods:")
    for name in method_names():
        click.echo(f"  {name:<{width}}  {about(recipe_files(f'{first}-{name}')[1])}")
    click.echo("\n`meet recipes show NAME` prints the stages of one, `meet config NAME` its every setting.")


@recipes.command(cls=SettingsCommand, short_help="Print the resolved stages of a recipe.")
@args_argument("RECIPE [SETTING]...")
def show(args: tuple[str, ...]) -> None:
    """Print the stages of RECIPE with their learning rates and epochs; takes settings as `meet train` does."""
    config = configure(args, None)
    from meetlm.run.table import aligned

    click.echo(f"{config.recipe}  (preset {config.preset})")
    for file in recipe_files(config.recipe):
        click.echo(f"  {about(file)}")
    click.echo()
    for key, value in _lines(config):
        click.echo(f"{key:<9} {value}")
    rows = [("stage", "trains", "format", "objective", "lr", "control lr", "epochs", "least steps")]
    for stage in config.stages:
        objective = stage.objective.model_dump()
        more = ", ".join(f"{key} {value:g}" for key, value in objective.items() if key != "kind")
        rows.append(
            (
                stage.name,
                " + ".join(stage.train),
                stage.format,
                f"{stage.objective.kind} ({more})" if more else stage.objective.kind,
                f"{stage.lr:g}",
                f"{stage.control_lr or stage.lr:g}" if "control" in stage.train else "-",
                f"{stage.epochs:g}",
                str(stage.min_steps or "-"),
            )
        )
    click.echo()
    for line in aligned(rows):
        click.echo(line)


def _lines(config: RunConfig) -> list[tuple[str, str]]:
    """Return what all stages share."""
    control = {key: value for key, value in config.control.model_dump().items() if value is not None}
    kind = control.pop("kind")
    return [
        ("model", config.model.name),
        ("data", f"{config.data.path or config.data.train_file} ({config.data.source})"),
        ("control", f"{kind}: " + ", ".join(f"{key} {_plain(value)}" for key, value in control.items())),
        ("batch", f"{config.batch.pairs} pairs a step"),
    ]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} = {text!r}" for key, text in value.items())
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
