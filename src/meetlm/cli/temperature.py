"""``meet sweep-temperature``: the paper's Figure 3."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, split
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.evaluate import show
from meetlm.cli.evaluators import (
    EVALUATOR_BLOCKS,
    EvaluatorSettings,
    evaluation_settings,
    evaluator_options,
    evaluator_settings,
)
from meetlm.cli.options import SEED, batch_size_option, level_option, out_option, quiet_option


@click.command(
    "sweep-temperature",
    cls=SettingsCommand,
    blocks=EVALUATOR_BLOCKS,
    short_help="Compare runs at several temperatures.",
)
@args_argument("RUN... [SETTING]...")
@click.option("--baseline", "baselines", multiple=True, required=True, help="Name of a baseline run; repeatable.")
@click.option("--temperatures", default="0,0.25,0.5,0.75,1", show_default=True, help="Numbers separated by commas.")
@level_option
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Sample from the most likely tokens of this total probability.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Maximum tokens per completion."
)
@click.option("--limit", type=click.IntRange(1), help="Use only this many held-out prompts, the first ones.")
@click.option("--sampling-seed", type=SEED, default=0, show_default=True, help="Seed of sampling.")
@click.option("--common", is_flag=True, help="Compare the prompts that all runs have, where their prompts differ.")
@batch_size_option
@evaluator_options
@out_option("runs/temperature", "Folder of the report and the evaluations.")
@quiet_option
def sweep_temperature(args: tuple[str, ...], out: Path, quiet: bool, **given: Any) -> None:
    """Compare RUNs with each --baseline at each temperature, and plot win − lose over temperature.

    A RUN is the folder of a run; NAME=FOLDER names it. Completions that a run does not have yet are generated and
    written into it, as by `meet generate`. An interrupted sweep continues when the same command is given again.

    \b
    meet sweep-temperature runs/meet runs/coh runs/dpo --baseline coh --baseline dpo --reward runs/rm
    """  # noqa: D301  click's mark is a real backspace
    runs, overrides = split(args, EvaluatorSettings, only_dotted=True)
    if not runs:
        raise click.UsageError("expected runs: their folders, or NAME=FOLDER")
    quiet_libraries()
    from meetlm.config.errors import ConfigError
    from meetlm.evaluation.evaluate import Evaluators
    from meetlm.generation.sampling import Sampling
    from meetlm.report.write import write_temperature_report
    from meetlm.run.compared import named_paths
    from meetlm.run.folder import read_data_settings
    from meetlm.run.levels import parse_level
    from meetlm.run.temperature import sweep_temperature as sweep

    folders: dict[str, Path] = {}
    for arg in runs:
        name, paths = named_paths(arg)
        if len(paths) > 1:
            raise ConfigError(f"{arg!r} names several folders; expected one run")
        if name in folders:
            raise ConfigError(f"two runs are called {name!r}; name them, as in NAME={paths[0]}")
        folders[name] = paths[0]
    for override in overrides:
        if override.key.startswith("data."):
            raise ConfigError(f"{override.option} has no effect: the runs are compared on their own held-out prompts")
    temperatures = _temperatures(given["temperatures"])
    source = read_data_settings(next(iter(folders.values()))).source
    reporter = ConsoleReporter(quiet=quiet)
    points = sweep(
        folders,
        given["baselines"],
        temperatures,
        Sampling(top_p=given["top_p"], max_new_tokens=given["max_new_tokens"]),
        evaluation_settings(given),
        Evaluators.load(**evaluator_settings(given, overrides), source=source, folder=out),
        out,
        level=parse_level(given["level"]),
        seed=given["sampling_seed"],
        limit=given["limit"],
        only_common=given["common"],
        batch_size=given["batch_size"],
        reporter=reporter,
    )
    for temperature, evaluation in points:
        click.echo(f"temperature {temperature:g}, against {evaluation.baseline}")
        show(evaluation)
    for file in write_temperature_report(points, out):
        reporter.message(f"report: {file}")


def _temperatures(text: str) -> list[float]:
    try:
        numbers = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise click.UsageError(f"--temperatures {text!r}: expected numbers separated by commas") from None
    if not all(0 <= number < math.inf for number in numbers):
        raise click.UsageError(f"--temperatures {text!r}: expected finite numbers that are not negative")
    return numbers
