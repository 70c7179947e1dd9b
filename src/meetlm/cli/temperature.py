"""``meet sweep-temperature``: the paper's Figure 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meetlm.cli.arguments import SettingsCommand
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.evaluate import show
from meetlm.cli.evaluators import EvaluatorSettings, evaluator_options, evaluator_settings
from meetlm.cli.main import main
from meetlm.cli.options import (
    Count,
    Numbers,
    batch_size_option,
    json_option,
    level_option,
    out_option,
    quiet_option,
    sampling_options,
    seed_option,
)
from meetlm.config.errors import ConfigError
from meetlm.config.overrides import Override
from meetlm.evaluation.settings import EvaluationSettings
from meetlm.generation.settings import Sampling


@main.command(
    "sweep-temperature",
    cls=SettingsCommand,
    names="RUN...",
    missing="folders of runs, or NAME=FOLDER",
    settings=EvaluatorSettings,
    short_help="Compare runs at several temperatures.",
)
@click.option("--baseline", "baselines", multiple=True, required=True, help="Name of a baseline run; repeatable.")
@click.option(
    "--temperatures",
    type=Numbers(float),
    default="0,0.25,0.5,0.75,1",
    show_default=True,
    help="Temperatures, separated by commas.",
)
@level_option
@sampling_options("top_p", "max_new_tokens")
@click.option("--limit", type=Count(1), help="Compare the first N held-out prompts only.  [default: all]")
@seed_option("Seed of sampling.", "--sampling-seed")
@click.option("--common", is_flag=True, help="Compare only prompts for which all runs have completions.")
@batch_size_option
@evaluator_options
@out_option("runs/temperature", "Folder of the report and the evaluations.")
@json_option
@quiet_option
def sweep_temperature(
    names: list[str],
    overrides: list[Override],
    temperatures: list[float],
    sampling: Sampling,
    settings: EvaluationSettings,
    out: Path,
    as_json: bool,
    reporter: ConsoleReporter,
    **options: Any,
) -> None:
    """Compare RUNs with each --baseline at each temperature, and plot Δ (win − lose) over temperature.

    A RUN is the folder of a run; NAME=FOLDER names it. Completions that a run does not have yet are generated and
    written into it, as by `meet generate`. The same command continues an interrupted sweep.

    \b
    Examples:
      meet sweep-temperature runs/meet runs/coh runs/dpo --baseline coh --baseline dpo --reward runs/rm
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.evaluation.evaluate import Evaluators
    from meetlm.report.conditions import Condition
    from meetlm.report.write import write_temperature_report
    from meetlm.run.folder import read_data_settings
    from meetlm.run.levels import parse_level
    from meetlm.run.systems import named_paths
    from meetlm.run.temperature import sweep_temperature as sweep

    folders: dict[str, Path] = {}
    for argument in names:
        name, paths = named_paths(argument)
        if len(paths) > 1:
            raise ConfigError(f"{argument!r} names several folders; expected one run")
        if name in folders:
            raise ConfigError(f"two runs are called {name!r}; name them, as in NAME={paths[0]}")
        folders[name] = paths[0]
    source = read_data_settings(next(iter(folders.values()))).source
    points = sweep(
        folders,
        options["baselines"],
        sorted(temperatures),
        sampling,
        settings,
        Evaluators.load(**evaluator_settings(options, settings, overrides), source=source, folder=out),
        out,
        level=parse_level(options["level"]),
        seed=options["sampling_seed"],
        limit=options["limit"],
        only_common=options["common"],
        batch_size=options["batch_size"],
        reporter=reporter,
    )
    show([Condition(evaluation, temperature) for temperature, evaluation in points], as_json=as_json)
    for file in write_temperature_report(points, out):
        reporter.message(f"report: {file}")
