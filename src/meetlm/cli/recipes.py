"""``meet recipes``: list the recipes and show their stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, configure
from meetlm.cli.options import json_option, print_json
from meetlm.recipes.names import data_names, description, method_names, recipe_files

if TYPE_CHECKING:
    from meetlm.recipes.config import RunConfig


@click.group(invoke_without_command=True, short_help="List the recipes, or show the stages of one.")
@json_option
@click.pass_context
def recipes(ctx: click.Context, as_json: bool) -> None:
    """List the recipes: combinations of a data set and a method, such as hh-meet-lora.

    \b
    meet recipes
    meet recipes show tldr-dpo
    meet recipes show hh-coh --preset small
    """  # noqa: D301  click's mark is a real backspace
    if ctx.invoked_subcommand is not None:
        return
    first_data, first_method = data_names()[0], method_names()[0]
    data = {name: description(recipe_files(f"{name}-{first_method}")[0]) for name in data_names()}
    methods = {name: description(recipe_files(f"{first_data}-{name}")[1]) for name in method_names()}
    if as_json:
        print_json({"data": data, "methods": methods})
        return
    width = max(map(len, methods))
    click.echo("A recipe is DATA-METHOD, such as hh-meet-lora.")
    for title, descriptions in (("Data", data), ("Methods", methods)):
        click.echo(f"\n{title}:")
        for name, text in descriptions.items():
            click.echo(f"  {name:<{width}}  {text}")
    click.echo("\n`meet recipes show RECIPE` prints the stages of a recipe, `meet config RECIPE` all its settings.")


@recipes.command(cls=SettingsCommand, short_help="Print the resolved stages of a recipe.")
@args_argument("RECIPE [SETTING]...")
def show(args: tuple[str, ...]) -> None:
    """Print the stages of RECIPE with their learning rates and epochs; takes settings as `meet train` does."""
    config = configure(args, None)
    from meetlm.run.table import aligned

    click.echo(f"{config.recipe}  (preset {config.preset})")
    for file in recipe_files(config.recipe):
        click.echo(f"  {description(file)}")
    click.echo()
    for key, value in _lines(config):
        click.echo(f"{key:<9} {value}")
    rows = [("stage", "trains", "format", "objective", "lr", "control lr", "epochs", "min steps")]
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
    """Return the settings that all stages share."""
    control = {key: value for key, value in config.control.model_dump().items() if value is not None}
    kind = control.pop("kind")
    return [
        ("model", config.model.name),
        ("data", f"{config.data.path or config.data.train_file} ({config.data.source})"),
        ("control", f"{kind}: " + ", ".join(f"{key} {_plain(value)}" for key, value in control.items())),
        ("batch", f"{config.batch.pairs} pairs per step"),
    ]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} = {text!r}" for key, text in value.items())
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
