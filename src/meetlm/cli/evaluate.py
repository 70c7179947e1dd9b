"""``meet evaluate``: compare completions with a baseline's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meetlm.cli.arguments import HeldOutData, SettingsCommand, held_out_data
from meetlm.cli.console import ConsoleReporter, print_json, print_report_table, quiet_libraries
from meetlm.cli.evaluators import EvaluatorSettings, evaluator_options, evaluator_settings
from meetlm.cli.main import main
from meetlm.cli.options import json_option, out_option, quiet_option, sampling_options
from meetlm.config.overrides import Override
from meetlm.evaluation.settings import EvaluationSettings
from meetlm.generation.settings import Sampling

if TYPE_CHECKING:
    from meetlm.report.conditions import Conditions


class ComparisonSettings(EvaluatorSettings, HeldOutData):
    """The settings of a command that compares completions of prompts that may be named."""


@main.command(
    cls=SettingsCommand,
    names="SYSTEM...",
    missing="folders of runs, or files of completions",
    settings=ComparisonSettings,
    short_help="Compare completions of several systems.",
)
@click.option("--baseline", required=True, help="Name of the system that the others are compared with.")
@click.option(
    "--level", default="good", show_default=True, help="Level of a run's completions; '' = each run's default level."
)
@sampling_options()
@click.option("--common", is_flag=True, help="Compare only prompts for which all systems have completions.")
@evaluator_options
@out_option("runs/evaluation", "Folder of the results.")
@json_option
@quiet_option
def evaluate(
    names: list[str],
    overrides: list[Override],
    level: str,
    sampling: Sampling,
    settings: EvaluationSettings,
    out: Path,
    as_json: bool,
    reporter: ConsoleReporter,
    **options: Any,
) -> None:
    """Compare completions of SYSTEMs with those of --baseline on the same held-out prompts.

    A SYSTEM is the folder of a run with completions by `meet generate`, or a file of JSON lines with `prompt` and
    `completion`. NAME=PATH names it; NAME=PATH,PATH gives replicates, such as runs under several seeds.

    --level, --temperature, --top-p and --max-new-tokens select the completions of a run by how they were generated.
    The evaluators are --reward, --judge and --scorer, and ROUGE where the held-out data have chosen replies.

    Rewards and judge responses are stored in --out as they arrive: the same command continues after an interruption and
    repeats no call.

    \b
    Examples:
      meet evaluate runs/all/hh-meet-lora-seed0 runs/all/hh-coh-seed0 --baseline hh-coh-seed0 --reward runs/rm
      meet evaluate meet=runs/meet theirs=answers.jsonl --baseline theirs --data.path test.jsonl \\
          --judge gpt-4o --judge.prompt summary
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.report.conditions import Condition
    from meetlm.run.evaluate import evaluate as compare
    from meetlm.run.levels import parse_level

    evaluation = compare(
        names,
        options["baseline"],
        data=held_out_data(overrides),
        level=parse_level(level),
        **sampling.model_dump(),
        settings=settings,
        **evaluator_settings(options, settings, overrides),
        only_common=options["common"],
        out=out,
        reporter=reporter,
    )
    show([Condition(evaluation)], as_json=as_json)


def show(conditions: Conditions, *, as_json: bool) -> None:
    """Print the outcomes by each evaluator, and the judge's account; list problems on stderr."""
    from meetlm.report.conditions import comparisons_of, evaluators_of
    from meetlm.report.judge import judge_tables
    from meetlm.report.tables import outcome_table

    if as_json:
        rows = []
        for condition, comparison in comparisons_of(conditions):
            names = {name: getattr(comparison, name) for name in ("evaluator", "system", "baseline")}
            rows.append({**names, "temperature": condition.temperature, **asdict(comparison.rates)})
        print_json(rows)
    else:
        for evaluator in evaluators_of(conditions):
            print_report_table(outcome_table(conditions, evaluator))
        for table in judge_tables(conditions):
            print_report_table(table)
    for condition in conditions:
        for problem in condition.evaluation.problems:
            click.echo(f"{problem}{condition.suffix}", err=True)
