"""``meet sweep`` and ``meet search``: several runs, one table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, split
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.options import SEED, config_option, json_option, out_option, print_json, quiet_option

if TYPE_CHECKING:
    from meetlm.run.arm import ArmResult


@click.command(cls=SettingsCommand, short_help="Train several recipes and seeds; print a table.")
@args_argument("RECIPE... [SETTING]...")
@click.option("--seeds", default="0", show_default=True, help="Seeds to train each recipe with, separated by commas.")
@config_option
@out_option("runs/sweep", "Folder of the runs.")
@click.option("--prompts", type=click.IntRange(0), help="Number of held-out prompts to complete  [default: all].")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Maximum number of tokens per completion.",
)
@click.option("--keep-weights", is_flag=True, help="Keep the model and the controls of each run.")
@json_option
@quiet_option
def sweep(
    args: tuple[str, ...],
    seeds: str,
    file: Path | None,
    out: Path,
    prompts: int | None,
    max_new_tokens: int,
    keep_weights: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train RECIPEs on the same data, each in its own folder, and print one table.

    A recipe may be a pattern. Settings apply to all recipes. Stages that runs have in common (step 1 of MEET and of its
    ablation, SFT before DPO) are trained once. Each run completes the held-out prompts by greedy decoding under its
    default level; then its weights are removed. The same command continues an interrupted sweep.

    \b
    meet sweep hh-meet-lora hh-coh hh-dpo --data.path ../hh-rlhf
    meet sweep 'hh-*' --seeds 0,1,2 --preset small --data.limit_train 2000 --out runs/all
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.generation.sampling import Sampling
    from meetlm.recipes.config import RunConfig
    from meetlm.run.arm import AfterTraining
    from meetlm.run.sweep import TABLE, arm_configs
    from meetlm.run.sweep import sweep as run

    names, overrides = split(args, RunConfig)
    if not names:
        raise click.UsageError("name recipes, or patterns such as 'hh-*'; `meet recipes` lists them")
    configs = arm_configs(names, _numbers(seeds), file, overrides)
    sampling = None if prompts == 0 else Sampling(max_new_tokens=max_new_tokens)
    after_training = AfterTraining(sampling, prompts, keep_weights)
    results, failures = run(configs, out, after_training, reporter=ConsoleReporter(quiet=quiet))
    if as_json:
        print_json({"runs": [asdict(result) for result in results], "failures": failures})
    elif sys.stdout.isatty():
        _show(results)
    else:  # a file or a pipe has no width to fit
        click.echo((out / TABLE).read_text())
    _finish(failures, f"The table is in {out / TABLE}, each run in a folder beside it.")


@click.command(cls=SettingsCommand, short_help="Search the learning rates of recipes.")
@args_argument("RECIPE... [SETTING]...")
@click.option(
    "--trials",
    type=click.IntRange(2),
    default=6,
    show_default=True,
    help="Budget: stages to train per recipe.",
)
@click.option(
    "--holdout",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Training prompts to hold out for comparison.",
)
@click.option(
    "--by",
    type=click.Choice(["auto", "preference", "reward", "nll"]),
    default="auto",
    show_default=True,
    help="Selection metric: preference accuracy, reward accuracy or NLL; auto = preference accuracy, NLL for methods "
    "without levels, reward accuracy for DPO.",
)
@config_option
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of all runs.")
@out_option("runs/search", "Folder of the trials.")
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
    """Search the learning rates of RECIPEs, with the same number of trained stages per recipe.

    Candidates are the recipe's learning rate times powers of 3, compared on training prompts that are held out from
    training; the evaluation split is not used. The stages of a recipe share the budget: the first is settled before the
    second is tried.

    \b
    meet search hh-meet-lora hh-coh hh-dpo --trials 6 --preset small --data.limit_train 400
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.recipes.config import RunConfig
    from meetlm.run.search import lines
    from meetlm.run.search import search as run

    names, overrides = split(args, RunConfig)
    if not names:
        raise click.UsageError("name recipes, or patterns such as 'hh-*'; `meet recipes` lists them")
    reporter = ConsoleReporter(quiet=quiet)
    results, failures = run(
        names, file, overrides, out, trials=trials, holdout=holdout, by=by, seed=seed, reporter=reporter
    )
    args_of_train = [part for override in overrides for part in (override.option, override.text)]
    args_of_train += ["--config", str(file)] if file else []
    for line in lines(results, args_of_train, failures):
        click.echo(line)
    _finish(failures, f"All trials are in {out}.")


def _finish(failures: Mapping[str, str], message: str) -> None:
    """Report where results are and what has failed; exit with code 1 if anything has."""
    reporter = ConsoleReporter()
    reporter.message(message)
    for name, reason in failures.items():
        reporter.warning(f"{name} failed: {reason}")
    if failures:
        sys.exit(1)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected whole numbers and commas", param_hint="--seeds") from None


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
