"""``meet demo`` and ``meet demo-data``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, split
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.options import SEED

if TYPE_CHECKING:
    from meetlm.demo.show import DemoResult


@click.command(cls=SettingsCommand, short_help="Align a small model and compare its levels.")
@args_argument("[SETTING]...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="The run.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def demo(args: tuple[str, ...], out: Path, quiet: bool) -> None:
    """Align a real small model with both steps of MEET, and show it answering under `good` and `bad`.

    SmolLM2-135M comes from a wheel, the preference data from this package; about ten minutes on two cores. Settings
    can be overridden as in `meet train`.
    """
    quiet_libraries()
    from meetlm.demo.show import run_demo
    from meetlm.recipes.config import RunConfig

    names, overrides = split(args, RunConfig)
    if names:
        raise click.UsageError(f"the demo takes settings only, not {names[0]!r}")

    reporter = ConsoleReporter(quiet=quiet)
    reporter.message("MEET on SmolLM2-135M: `good` replies use the first person (I, my, me), `bad` ones do not.")
    result = run_demo(out, overrides, reporter=reporter)
    _show(result, out)


@click.command("demo-data", short_help="Make the demo's preference set again.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder; what is there is replaced.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of sampling, held-out topics and order.")
def demo_data(out: Path, seed: int) -> None:
    """Make the demo's preference set again: sample SmolLM2's replies, score them by the rule, write pairs.

    Writes train.jsonl and test.jsonl.
    """
    quiet_libraries()
    from meetlm.demo.build import build

    out.mkdir(parents=True, exist_ok=True)
    counts = build(out, seed=seed, reporter=ConsoleReporter())
    for name, count in counts.items():
        click.echo(f"{out / name}.jsonl: {count} pairs")


def _show(result: DemoResult, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print()
    for example in result.examples:
        table = Table(title=example["prompt"], title_justify="left", show_header=False, expand=True)
        table.add_column(min_width=9)
        table.add_column(ratio=8)
        for arm in ("good", "bad", "untouched"):
            table.add_row(arm, example[arm])
        console.print(table)
    table = Table(title="share of first-person words in replies to held-out prompts", title_justify="left")
    table.add_column("")
    table.add_column("mean [95% interval]")
    for arm, rate in result.scores.items():
        table.add_row(arm, str(rate))
    table.add_row("good - bad, paired", str(result.difference))
    console.print(table)
    table = Table(title="preference accuracy on held-out pairs (0.5 is chance)", title_justify="left")
    table.add_column("")
    table.add_column("accuracy [95% interval]")
    for when, rate in result.accuracy.items():
        table.add_row(when, str(rate))
    console.print(table)
    console.print(f"{result.seconds:.0f} s in this call. The run is in {out}: try `meet generate {out} --level good`.")
