"""``meet sweep`` and ``meet search``: several runs, one table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from meetlm.cli.arguments import SettingsCommand, as_args
from meetlm.cli.console import ConsoleReporter, print_json, print_table, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import (
    Count,
    Numbers,
    config_option,
    json_option,
    out_option,
    quiet_option,
    sampling_options,
    seed_option,
)
from meetlm.config.overrides import Override
from meetlm.generation.settings import Sampling

RECIPES = "names, or patterns such as 'hh-*'; `meet recipes` lists them"


@main.command(cls=SettingsCommand, names="RECIPE...", missing=RECIPES, short_help="Train several recipes and seeds.")
@click.option(
    "--seeds",
    type=Numbers(int),
    default="0",
    show_default=True,
    help="Seeds to train each recipe with, separated by commas.",
)
@config_option
@out_option("runs/sweep", "Folder of the runs.")
@click.option("--limit", type=Count(0), help="Complete the first N held-out prompts only; 0 = none.  [default: all]")
@sampling_options("max_new_tokens")
@click.option("--keep-weights", is_flag=True, help="Keep the model and the controls of each run.")
@json_option
@quiet_option
def sweep(
    names: list[str],
    overrides: list[Override],
    seeds: list[int],
    file: Path | None,
    out: Path,
    limit: int | None,
    sampling: Sampling,
    keep_weights: bool,
    as_json: bool,
    reporter: ConsoleReporter,
) -> None:
    """Train RECIPEs on the same data, each in its own folder, and print one table.

    A recipe may be a pattern. Settings apply to all recipes. Stages that runs have in common, such as SFT before DPO,
    are trained once. Each run completes the held-out prompts by greedy decoding at its default level; then its weights
    are deleted unless --keep-weights is passed. The same command continues an interrupted sweep.

    \b
    Examples:
      meet sweep hh-meet-lora hh-coh hh-dpo --data.path ../hh-rlhf
      meet sweep 'hh-*' --seeds 0,1,2 --preset small --data.limit_train 2000 --out runs/all
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.run.arm import AfterTraining
    from meetlm.run.sweep import TABLE, arm_configs
    from meetlm.run.sweep import sweep as run
    from meetlm.run.table import COLUMNS, LEGEND, rows

    configs = arm_configs(names, seeds, file, overrides)
    after_training = AfterTraining(None if limit == 0 else sampling, limit, keep_weights)
    results, failures = run(configs, out, after_training, reporter=reporter)
    if as_json:
        print_json({"runs": [asdict(result) for result in results], "failures": failures})
    else:
        print_table(COLUMNS, rows(results))
        click.echo(LEGEND)
    _finish(failures, f"The table is in {out / TABLE}, each run in a folder beside it.", reporter)


@main.command(
    cls=SettingsCommand, names="RECIPE...", missing=RECIPES, short_help="Search the learning rates of recipes."
)
@click.option("--trials", type=Count(2), default=6, show_default=True, help="Budget: stages to train per recipe.")
@click.option(
    "--holdout", type=Count(1), default=200, show_default=True, help="Training prompts to hold out for comparison."
)
@click.option(
    "--by",
    "metric",
    type=click.Choice(["auto", "preference", "reward", "nll"]),
    default="auto",
    show_default=True,
    help="Selection metric: preference accuracy, reward accuracy or NLL; auto = preference accuracy, NLL for methods "
    "without levels, reward accuracy for DPO.",
)
@config_option
@seed_option("Seed of all runs.")
@out_option("runs/search", "Folder of the trials.")
@json_option
@quiet_option
def search(
    names: list[str],
    overrides: list[Override],
    trials: int,
    holdout: int,
    metric: str,
    file: Path | None,
    seed: int,
    out: Path,
    as_json: bool,
    reporter: ConsoleReporter,
) -> None:
    """Search learning rates for RECIPEs, with the same number of trained stages for each recipe.

    Candidates are the recipe's learning rate times powers of 3, compared on training prompts that are held out from
    training; the evaluation split is not used. The stages of a recipe share the budget: the rate of the first stage is
    chosen before the rates of the second stage are tried.

    \b
    Examples:
      meet search hh-meet-lora hh-coh hh-dpo --trials 6 --preset small --data.limit_train 400
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.run.search import COLUMNS, best_rates
    from meetlm.run.search import search as run

    results, failures = run(
        names, file, overrides, out, trials=trials, holdout=holdout, metric=metric, seed=seed, reporter=reporter
    )
    if as_json:
        print_json({"trials": [trial.to_dict() for trial in results], "failures": failures})
    elif results:
        click.echo(f"On {results[0].after.pairs} held-out training pairs, measured after each stage:")
        print_table(COLUMNS, (trial.row for trial in results))
        click.echo()
        args = shlex.join([*as_args(overrides), *(("--config", str(file)) if file else ())])
        for recipe, rates in best_rates(results, failures).items():
            click.echo(" ".join(filter(None, ("meet train", recipe, args, rates))))
    _finish(failures, f"All trials are in {out}.", reporter)


def _finish(failures: Mapping[str, str], message: str, reporter: ConsoleReporter) -> None:
    """Print ``message`` and the failures; exit with code 1 if there are any."""
    reporter.message(message)
    for name, reason in failures.items():
        reporter.warning(f"{name} failed: {reason}")
    if failures:
        sys.exit(1)
