"""``meet evaluate``: compare completions with a baseline's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, held_out_data, split
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.evaluators import (
    EVALUATOR_BLOCKS,
    EvaluatorSettings,
    evaluation_settings,
    evaluator_options,
    evaluator_settings,
)
from meetlm.cli.options import HELD_OUT, finite, out_option, quiet_option

if TYPE_CHECKING:
    from meetlm.evaluation.record import Evaluation


@click.command(
    cls=SettingsCommand,
    blocks=HELD_OUT | EVALUATOR_BLOCKS,
    short_help="Compare completions with a baseline's.",
)
@args_argument("SYSTEM... [SETTING]...")
@click.option("--baseline", required=True, help="Name of the system that the others are compared with.")
@click.option(
    "--preset",
    type=click.Choice(["paper"]),
    default="paper",
    show_default=True,
    help="Level and sampling of the completions to compare.",
)
@click.option("--level", help="Level of the completions of a run  [default: good; '' = each run's default level].")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    callback=finite,
    help="Temperature the completions were sampled at  [default: 0].",
)
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Top-p the completions were sampled with  [default: 1]."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    help="Maximum number of new tokens the completions were sampled with  [default: 128].",
)
@click.option("--common", is_flag=True, help="Compare over the prompts that all systems have.")
@evaluator_options
@out_option("runs/evaluation", "Folder of the results.")
@quiet_option
def evaluate(args: tuple[str, ...], quiet: bool, out: Path, **options: Any) -> None:
    """Compare completions of SYSTEMs with those of --baseline on the same held-out prompts.

    A SYSTEM is a run's folder with completions by `meet generate`, or a file of JSON lines with `prompt` and
    `completion`; NAME=PLACE names it, NAME=PLACE,PLACE gives replicates, such as runs under several seeds. Prompts
    without a chosen reply in --data.path are compared by all evaluators but ROUGE. Rewards and a judge's responses are
    stored in --out as they come: the same command continues after an interruption and repeats no call.

    \b
    meet evaluate runs/all/hh-meet-lora-seed0 runs/all/hh-coh-seed0 --baseline hh-coh-seed0 --reward runs/rm
    meet evaluate meet=runs/meet theirs=answers.jsonl --baseline theirs --data.path test.jsonl \\
        --judge gpt-4o --judge.prompt summary
    """  # noqa: D301  click's mark is a real backspace
    systems, overrides = split(args, EvaluatorSettings, only_dotted=True)
    if not systems:
        raise click.UsageError("expected systems: folders of runs, or files of completions")
    quiet_libraries()
    from meetlm.evaluation.protocol import PRESETS
    from meetlm.run.evaluate import evaluate as compare
    from meetlm.run.levels import parse_level

    names = ("level", "temperature", "top_p", "max_new_tokens")
    stated = {name: options[name] for name in names if options[name] is not None}
    protocol = PRESETS[options["preset"]].model_copy(update=stated)
    evaluation = compare(
        systems,
        options["baseline"],
        data=held_out_data(overrides),
        level=parse_level(protocol.level or None),
        **protocol.model_dump(exclude={"level"}),
        settings=evaluation_settings(options),
        **evaluator_settings(options, overrides),
        only_common=options["common"],
        out=out,
        reporter=ConsoleReporter(quiet=quiet),
    )
    show(evaluation)


def show(evaluation: Evaluation) -> None:
    """Print the outcomes and the judge's account; list problems on stderr."""
    from meetlm.report.conclusions import judge_mark
    from meetlm.report.judge import judge_lines

    click.echo(
        f"{len(evaluation.prompts)} prompts, {len(evaluation.cells)} completions per system; Δ = win - lose, in %"
    )
    for comparison in evaluation.comparisons:
        rates = comparison.rates
        delta = f"{_percent(rates.delta.value)} [{_percent(rates.delta.low)}, {_percent(rates.delta.high)}]"
        mark = judge_mark(evaluation, comparison.evaluator, comparison.system)
        click.echo(
            f"{comparison.evaluator}: {comparison.system} against {comparison.baseline}: "
            f"win {_percent(rates.win.value)}, lose {_percent(rates.lose.value)}, tie {_percent(rates.tie.value)}, "
            f"Δ {delta}, sign test p {rates.sign_p:.2g}, {rates.num_prompts} prompts" + (f" {mark}" if mark else "")
        )
    for line in judge_lines(evaluation):
        click.echo(line)
    for problem in evaluation.problems:
        examples = f": {problem.shown}" if problem.examples else ""
        click.echo(f"{problem.count} x {problem.what}{examples}", err=True)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
