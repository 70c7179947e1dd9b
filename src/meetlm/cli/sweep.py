"""``meet sweep`` and ``meet search``: many runs, one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, split
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.options import SEED, config_option, quiet_option

if TYPE_CHECKING:
    from meetlm.run.arm import ArmResult


@click.command(cls=SettingsCommand, short_help="Run recipes x seeds over the same data; one table.")
@args_argument("RECIPE... [SETTING]...")
@click.option("--seeds", default="0", show_default=True, help="Runs of each recipe: seeds, comma between.")
@config_option
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/sweep"), show_default=True, help="A folder.")
@click.option("--prompts", type=click.IntRange(0), help="Held-out prompts to write completions for  [default: all].")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Most new tokens of a completion."
)
@click.option("--keep-weights", is_flag=True, help="Keep each arm's model and controls, not only what was measured.")
@quiet_option
def sweep(
    args: tuple[str, ...],
    seeds: str,
    file: Path | None,
    out: Path,
    prompts: int | None,
    max_new_tokens: int,
    keep_weights: bool,
    quiet: bool,
) -> None:
    """Run RECIPEs over the same data, each in its own folder, and end with one table.

    A recipe may be a pattern. Settings given here are for all of them. What arms have in common (step 1 for MEET and
    its ablation, SFT before DPO, the untouched model's log-probs) is computed once. Each arm's completions of the
    held-out prompts are written, greedily and under its default level; then its weights are dropped. The same command
    goes on where it was stopped.

    \b
    meet sweep hh-meet-lora hh-coh hh-dpo --data.path ../hh-rlhf
    meet sweep 'hh-*' --seeds 0,1,2 --preset small --data.limit_train 2000 --out runs/all
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.generation.sampling import Sampling
    from meetlm.recipes.config import RunConfig
    from meetlm.run.arm import AfterTraining
    from meetlm.run.sweep import TABLE, arms_of
    from meetlm.run.sweep import sweep as run

    names, overrides = split(args, RunConfig)
    if not names:
        raise click.UsageError("name recipes, or patterns such as 'hh-*'; `meet recipes` lists them")
    arms = arms_of(names, _numbers(seeds), file, overrides)
    sampling = None if prompts == 0 else Sampling(max_new_tokens=max_new_tokens)
    then = AfterTraining(sampling, prompts, keep_weights)
    results, failed = run(arms, out, then, reporter=ConsoleReporter(quiet=quiet))
    if sys.stdout.isatty():
        _show(results)
    else:  # a file or a pipe: no width to fit
        click.echo("\n" + (out / TABLE).read_text())
    click.echo(f"The table is in {out / TABLE}, each run in a folder beside it.")
    for name, said in failed.items():
        click.echo(f"{name} failed: {said}", err=True)
    if failed:
        sys.exit(1)


@click.command(cls=SettingsCommand, short_help="Find the rates of recipes, with the same budget for each.")
@args_argument("RECIPE... [SETTING]...")
@click.option(
    "--trials", type=click.IntRange(2), default=6, show_default=True, help="Stages trained a recipe: the budget."
)
@click.option("--holdout", type=click.IntRange(1), default=200, show_default=True, help="Training prompts to judge by.")
@click.option(
    "--by",
    type=click.Choice(["auto", "preference", "reward", "nll"]),
    default="auto",
    show_default=True,
    help="What decides: auto is preference accuracy, nll for methods without levels, reward accuracy for DPO.",
)
@config_option
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of all runs.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/search"), show_default=True, help="A folder."
)
@quiet_option
def search(
    args: tuple[str, ...],
    trials: int,
    holdout: int,
    by: str,
    file: Path | None,
    seed: int,
    out: Path,
    quiet: bool,
) -> None:
    """Find the rates of RECIPEs: as many trained stages for each, judged on training prompts held out from training.

    A recipe's stages share the budget, the first being settled before the second is tried. Rates are the recipe's own
    times powers of 3. The evaluation split is not looked at.

    \b
    meet search hh-meet-lora hh-coh hh-dpo --trials 6 --preset small --data.limit_train 400
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.recipes.config import RunConfig
    from meetlm.run.search import Search, lines

    names, overrides = split(args, RunConfig)
    if not names:
        raise click.UsageError("name recipes, or patterns such as 'hh-*'; `meet recipes` lists them")
    found = Search(names, file, overrides, trials=trials, holdout=holdout, by=by, seed=seed)
    made = found.run(out, reporter=ConsoleReporter(quiet=quiet))
    for line in lines(made, [*(part for o in overrides for part in (o.option, o.text)), *_file(file)], found.failed):
        click.echo(line)
    click.echo(f"\nAll trials are in {out}.")
    for name, said in found.failed.items():
        click.echo(f"{name} failed: {said}", err=True)
    if found.failed:
        sys.exit(1)


def _file(file: Path | None) -> list[str]:
    return ["--config", str(file)] if file else []


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected whole numbers, comma between", param_hint="--seeds") from None


def _show(results: Sequence[ArmResult]) -> None:
    from rich.console import Console
    from rich.table import Table

    from meetlm.run.table import COLUMNS, LEGEND, rows

    table = Table(*COLUMNS)
    for row in rows(results):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(LEGEND, highlight=False)
