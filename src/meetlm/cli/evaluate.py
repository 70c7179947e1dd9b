"""``meet evaluate``: compare completions with a baseline's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meetlm.cli.arguments import HeldOutData, SettingsCommand, args_argument, data_args, held_out_data, split
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.evaluators import decided_by, evaluators_of, settings_of
from meetlm.cli.options import HELD_OUT, finite
from meetlm.cli.progress import bar

if TYPE_CHECKING:
    from meetlm.evaluation.record import Evaluation


@click.command(cls=SettingsCommand, blocks=HELD_OUT, short_help="Compare completions with a baseline's; a report.")
@args_argument("SYSTEM... [SETTING]...")
@click.option("--baseline", required=True, help="Name of the system that the others are compared with.")
@click.option("--preset", type=click.Choice(["paper"]), default="paper", show_default=True, help="The protocol.")
@click.option("--level", help="Completions of a run to take  [default: good; '' for each run's default].")
@click.option("--temperature", type=click.FloatRange(0), callback=finite, help="Theirs  [default: 0].")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Theirs  [default: 1].")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Theirs  [default: 128].")
@click.option("--common", is_flag=True, help="Compare over the prompts that all systems have, where they differ.")
@decided_by
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/evaluation"), show_default=True, help="A folder."
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def evaluate(args: tuple[str, ...], quiet: bool, out: Path, **given: Any) -> None:
    """Compare completions of SYSTEMs with those of --baseline on the same held-out prompts.

    A SYSTEM is a run's folder, whose completions `meet generate` has written, or a file of JSON lines with `prompt` and
    `completion`; NAME=PLACE names it, NAME=PLACE,PLACE gives replicates, such as runs under other seeds. Nothing is
    sampled here. Prompts that have no chosen reply in --data.path are compared by all but ROUGE. Scores and a judge's
    answers are kept in --out as they come: the same command goes on where it was stopped, and repeats no call.

    \b
    meet evaluate runs/all/hh-meet-lora-seed0 runs/all/hh-coh-seed0 --baseline hh-coh-seed0 --reward runs/rm
    meet evaluate meet=runs/meet theirs=answers.jsonl --baseline theirs --data.path test.jsonl \\
        --judge gpt-4o --judge-prompt summary
    """  # noqa: D301  click's mark is a real backspace
    systems, overrides = split(args, HeldOutData, only_dotted=True)
    if not systems:
        raise click.UsageError("expected systems: folders of runs, or files of completions")
    quiet_libraries()
    from meetlm.evaluation.cells import line_up
    from meetlm.evaluation.evaluate import evaluate as compare
    from meetlm.evaluation.protocol import PRESETS
    from meetlm.generation.sampling import Sampling
    from meetlm.report.write import write_report
    from meetlm.run.compared import chosen_replies, data_of, read_systems
    from meetlm.run.completions import parse_level

    asked = {
        name: given[name] for name in ("level", "temperature", "top_p", "max_new_tokens") if given[name] is not None
    }
    protocol = PRESETS[given["preset"]].model_copy(update=asked)
    sampling = Sampling(**protocol.model_dump(exclude={"level"}))
    settings = settings_of(given)
    data = held_out_data(overrides) or data_of(systems)
    held = chosen_replies(data)
    level = parse_level(protocol.level or None)
    answers = read_systems(systems, level, sampling, held.chosen, data=data_args(overrides))
    cells = line_up(answers, held.chosen, common=given["common"])
    cells.problems.extend(held.problems)
    evaluators = evaluators_of(given, data.source)
    with bar("judge", unit="call", quiet=quiet) as on_judged:
        evaluation = compare(
            [one.system for one in answers],
            cells,
            given["baseline"],
            settings,
            evaluators,
            out,
            more={
                "preset": given["preset"],
                "protocol": protocol.model_dump(),
                "common": given["common"],
                "data": data.model_dump(mode="json"),
                "data_sha256": held.sha256,
            },
            on_judged=on_judged,
            reporter=ConsoleReporter(quiet=quiet),
        )
    evaluation.save(out / "evaluation.json")
    show(evaluation)
    for file in write_report(evaluation, out):
        click.echo(f"The report is in {file}.")


def show(evaluation: Evaluation) -> None:
    """Print who won, and what is wrong with rows."""
    from meetlm.report.conclusions import judge_mark
    from meetlm.report.judge import judge_lines

    click.echo(f"{len(evaluation.prompts)} prompts, {len(evaluation.cells)} completions each; Δ = win - lose, in %")
    for one in evaluation.comparisons:
        rates, mark = one.rates, judge_mark(evaluation, one.evaluator, one.system)
        click.echo(
            f"{one.evaluator}: {one.system} against {one.baseline}: win {_percent(rates.win.value)}, lose "
            f"{_percent(rates.lose.value)}, tie {_percent(rates.tie.value)}, Δ {_percent(rates.delta.value)} "
            f"[{_percent(rates.delta.low)}, {_percent(rates.delta.high)}], sign test p {rates.sign_p:.2g}, "
            f"{rates.num_prompts} prompts" + (f" {mark}" if mark else "")
        )
    for line in judge_lines(evaluation):
        click.echo(line)
    for problem in evaluation.problems:
        examples = f": {problem.shown}" if problem.examples else ""
        click.echo(f"{problem.count} x {problem.what}{examples}", err=True)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
