"""``meet recipes``: list the recipes and show their stages."""

from __future__ import annotations

import click

from meetlm.cli.arguments import SettingsCommand, configure
from meetlm.cli.console import print_json, print_table
from meetlm.cli.main import main
from meetlm.cli.options import json_option
from meetlm.config.describe import flow_yaml
from meetlm.config.overrides import Override
from meetlm.recipes.names import data_names, description, method_names, recipe_files, recipe_names


class _Recipes(click.Group):
    """Names the command for a recipe where a recipe stands in place of a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, as click does."""
        if args[0] in recipe_names():
            raise click.UsageError(f"{args[0]} is a recipe: `meet recipes show {args[0]}` prints its stages", ctx)
        return super().resolve_command(ctx, args)


@main.group(cls=_Recipes, invoke_without_command=True, short_help="List the recipes, or show the stages of one.")
@json_option
@click.pass_context
def recipes(ctx: click.Context, as_json: bool) -> None:
    """List the recipes: combinations of a data set and a method, such as hh-meet-lora.

    \b
    Examples:
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
    click.echo("A recipe is DATA-METHOD, such as hh-meet-lora.\n")
    print_table(("data", "description"), data.items())
    click.echo()
    print_table(("method", "description"), methods.items())
    click.echo("\n`meet recipes show RECIPE` prints the stages of a recipe, `meet config RECIPE` all its settings.")


@recipes.command(
    cls=SettingsCommand,
    names="RECIPE",
    missing="`meet recipes` lists the recipes",
    short_help="Print the stages of a recipe.",
)
def show(names: list[str], overrides: list[Override]) -> None:
    """Print the stages of RECIPE with their learning rates and epochs."""
    config = configure(names, overrides, None)
    click.echo(f"{config.recipe}  (preset {config.preset})")
    for file in recipe_files(config.recipe):
        click.echo(f"  {description(file)}")
    click.echo(f"\nmodel:   {config.model.name}")
    click.echo(f"data:    {config.data.path or config.data.train_file} ({config.data.source})")
    click.echo(f"control: {flow_yaml(config.control.model_dump(mode='json', exclude_none=True))}")
    click.echo(f"batch:   {config.batch.pairs} pairs per step\n")
    rows = []
    for stage in config.stages:
        objective = stage.objective.model_dump(exclude={"kind"})
        parameters = ", ".join(f"{key} {value:g}" for key, value in objective.items())
        rows.append(
            (
                stage.name,
                " + ".join(stage.train),
                stage.format,
                f"{stage.objective.kind} ({parameters})" if parameters else stage.objective.kind,
                f"{stage.lr:g}",
                f"{stage.control_lr or stage.lr:g}" if "control" in stage.train else "-",
                f"{stage.epochs:g}",
                str(stage.min_steps or "-"),
            )
        )
    heads = ("stage", "trains", "format", "objective", "lr", "control lr", "epochs", "min steps")
    print_table(heads, rows)
