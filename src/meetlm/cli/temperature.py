"""``meet sweep-temperature``: the paper's Figure 3."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.evaluate import show
from meetlm.cli.evaluators import decided_by, evaluators_of, settings_of
from meetlm.cli.options import SEED


@click.command("sweep-temperature", short_help="Compare runs over temperatures; a report.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--baseline", "baselines", multiple=True, required=True, help="Name of a run; repeatable.")
@click.option("--temperatures", default="0,0.25,0.5,0.75,1", show_default=True, help="Numbers, comma between.")
@click.option("--level", help="A level's name, or weights such as good=1.5,bad=-0.5  [default: each run's].")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Nucleus.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Most new tokens.")
@click.option("--limit", type=click.IntRange(1), help="The first so many held-out prompts only.")
@click.option("--sampling-seed", type=SEED, default=0, show_default=True, help="Of the completions.")
@click.option("--common", is_flag=True, help="Compare over the prompts that all runs have, where they differ.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Prompts at once.")
@decided_by
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/temperature"), show_default=True, help="A folder."
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def sweep_temperature(runs: tuple[str, ...], out: Path, quiet: bool, **given: Any) -> None:
    """Compare RUNs with each --baseline at each temperature, and plot win - lose over temperature.

    A RUN is a run's folder; NAME=FOLDER names it. Completions that a run does not have yet are written into it, as
    `meet generate` would; the same command goes on where it was stopped.

    \b
    meet sweep-temperature runs/meet runs/coh runs/dpo --baseline coh --baseline dpo --reward runs/rm
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.config.errors import ConfigError
    from meetlm.generation.sampling import Sampling
    from meetlm.report.write import write_temperature_report
    from meetlm.run.compared import named_places
    from meetlm.run.folder import read_data_settings
    from meetlm.run.levels import parse_level
    from meetlm.run.temperature import sweep_temperature as run

    named: dict[str, Path] = {}
    for word in runs:
        name, places = named_places(word)
        if len(places) > 1:
            raise ConfigError(f"{word!r} are several places: expected one run")
        if name in named:
            raise ConfigError(f"two runs are called {name!r}: name them, as in NAME={places[0]}")
        named[name] = places[0]
    sampling = Sampling(top_p=given["top_p"], max_new_tokens=given["max_new_tokens"])
    points = run(
        named,
        given["baselines"],
        _numbers(given["temperatures"]),
        sampling,
        settings_of(given),
        evaluators_of(given, read_data_settings(next(iter(named.values()))).source),
        out,
        level=parse_level(given["level"]),
        seed=given["sampling_seed"],
        limit=given["limit"],
        common=given["common"],
        batch_size=given["batch_size"],
        reporter=ConsoleReporter(quiet=quiet),
    )
    for temperature, evaluation in points:
        click.echo(f"temperature {temperature:g}, against {evaluation.baseline}")
        show(evaluation)
    for file in write_temperature_report(points, out):
        click.echo(f"The report is in {file}.")


def _numbers(text: str) -> list[float]:
    try:
        numbers = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise click.UsageError(f"--temperatures {text!r}: expected numbers with commas between") from None
    if not all(0 <= number < math.inf for number in numbers):
        raise click.UsageError(f"--temperatures {text!r}: expected finite numbers of 0 and more")
    return numbers
