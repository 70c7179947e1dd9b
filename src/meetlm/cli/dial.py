"""``meet dial``: the safe range of a run's levels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import HeldOutData, SettingsCommand, held_out_data
from meetlm.cli.console import ConsoleReporter, print_json, print_report_table, quiet_libraries
from meetlm.cli.evaluators import RewardArguments, model_settings
from meetlm.cli.main import main
from meetlm.cli.options import (
    FILE,
    Count,
    Numbers,
    batch_size_option,
    json_option,
    out_option,
    quiet_option,
    sampling_options,
    seed_option,
    settings_options,
)
from meetlm.config.overrides import Override
from meetlm.evaluation.settings import DialSettings
from meetlm.generation.settings import Sampling

if TYPE_CHECKING:
    from meetlm.evaluation.dial import DialKind


class _DialArguments(RewardArguments, HeldOutData):
    """The settings of the command."""


@main.command(
    cls=SettingsCommand,
    names="RUN",
    missing="the folder of a run",
    settings=_DialArguments,
    short_help="Measure the safe range of the levels of a run.",
)
@click.option(
    "--scorer",
    "scorers",
    multiple=True,
    metavar="[ATTRIBUTE=]MODULE:FUNCTION",
    help="Python function of prompt and completion, or `words` (number of words); repeatable. The first scorer, "
    "or the one that names its attribute, measures what the level should change; the others measure side effects.",
)
@click.option("--reward", "model", metavar="MODEL", help="Reward model that scores: hub name or folder.")
@click.option(
    "--by",
    type=click.Choice(["level", "guidance"]),
    default="level",
    show_default=True,
    help="What to vary: the level, or the strength of guidance at the best level, which works with every control.",
)
@click.option(
    "--grid",
    type=Numbers(float, is_signed=True),
    help="Settings, separated by commas: 0 = worst level, 1 = best, others extrapolate; or strengths of guidance.  "
    "[default: 0,0.25,0.5,0.75,1,1.25,1.5,2,2.5,3; the trained levels if the control cannot mix them; for guidance: "
    "0,0.25,0.5,1,1.5,2,3]",
)
@settings_options(DialSettings, "settings")
@sampling_options()
@click.option("--samples", type=Count(1), default=1, show_default=True, help="Samples per prompt and setting.")
@seed_option("Seed of sampling and of the bootstrap.")
@click.option("--limit", type=Count(1), default=128, show_default=True, help="Use the first N held-out prompts only.")
@batch_size_option
@click.option("--picture", type=FILE, help="Write a picture of the curves to this SVG or PNG file.")
@out_option(None, "Folder of the results.  [default: RUN/dial]")
@json_option
@quiet_option
def dial(
    names: list[str],
    overrides: list[Override],
    scorers: tuple[str, ...],
    model: str | None,
    by: DialKind,
    grid: list[float] | None,
    settings: DialSettings,
    sampling: Sampling,
    samples: int,
    seed: int,
    limit: int,
    batch_size: int,
    picture: Path | None,
    out: Path | None,
    as_json: bool,
    reporter: ConsoleReporter,
) -> None:
    """Measure the range in which the level of RUN can be varied without loss of fluency, and record it in the run.

    Replies to held-out prompts are generated at each setting, greedily by default, and scored. The report shows whether
    the score rises with the setting, what else changes, and where fluency breaks. The safe range and a recommended
    level are recorded: a level outside the range gives a warning, and a recommended level whose gain over the best
    level is significant becomes the default level of RUN. The same command continues an interrupted calibration.

    \b
    Examples:
      meet dial runs/meet --scorer my_scorers:politeness --temperature 0.7
      meet dial runs/meet --reward runs/rm --grid -0.5,0,0.5,1,1.5,2,3 --picture dial.svg
      meet dial runs/styles --scorer tone=my_scorers:formality --scorer length=words
    """  # noqa: D301  click's mark is a real backspace
    reward = model_settings(RewardArguments, overrides, reward=model).reward
    if picture is not None and picture.suffix not in (".svg", ".png"):
        raise click.UsageError(f"--picture {picture}: expected a name that ends in .svg or .png")
    run = Path(names[0])
    quiet_libraries()
    from meetlm.report.dial import dial_table, write_dial_report, write_picture
    from meetlm.run.dial import FOLDER, calibrate_run
    from meetlm.run.levels import level_text

    folder = out or run / FOLDER
    calibration = calibrate_run(
        run,
        scorers=scorers,
        reward=reward,
        by=by,
        grid=grid,
        settings=settings,
        sampling=sampling,
        samples=samples,
        seed=seed,
        data=held_out_data(overrides),
        limit=limit,
        batch_size=batch_size,
        out=folder,
        reporter=reporter,
    )
    files = write_dial_report(
        calibration.dials,
        calibration.pareto,
        calibration.examples,
        calibration.settings,
        calibration.problems,
        folder,
    )
    if as_json:
        pareto = calibration.pareto and asdict(calibration.pareto)
        limits = {each.attribute: each.limits() for each in calibration.dials}
        print_json({"dial": limits, "default_level": calibration.default_level, "pareto": pareto})
    else:
        for each in calibration.dials:
            print_report_table(dial_table(each))
            click.echo(
                f"safe range {each.safe[0]:g} to {each.safe[1]:g}, recommended {each.recommended:g}"
                + (f" ({each.attribute})" if each.attribute else "")
            )
        click.echo(f"default level of {run}: {level_text(calibration.default_level)}")
    if picture is not None:
        write_picture(calibration.dials, picture)
        reporter.message(f"picture: {picture}")
    for file in files:
        reporter.message(f"report: {file}")
