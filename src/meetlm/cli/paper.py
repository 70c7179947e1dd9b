"""``meet paper``: what the paper itself reports, with its errata marked."""

from __future__ import annotations

import click

from meetlm.cli.options import json_option, print_json


@click.command(short_help="Print the paper's own Tables 1 to 5 with errata marked.")
@click.option("--table", "number", type=click.IntRange(1, 5), help="Print this table only  [default: all].")
@json_option
def paper(number: int | None, as_json: bool) -> None:
    """Print the win, lose and tie rates and Δ of the paper's Tables 1 to 5. Inconsistent numbers are marked.

    \b
    meet paper
    meet paper --table 3
    """  # noqa: D301  click's mark is a real backspace
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from meetlm.report.paper import ABOUT, MARK, paper_records, paper_tables

    if as_json:
        print_json([record for record in paper_records() if number in (None, record["number"])])
        return
    console = Console(highlight=False)
    wide = Console(width=max(console.width, 120), highlight=False)  # keeps each row on one line, in a pipe too
    for table in (table for key, table in paper_tables().items() if number in (None, key)):
        console.print(table.caption, soft_wrap=True, markup=False)
        printed = Table(box=box.SIMPLE_HEAD)
        first = list(table.columns).index("Win")
        for place, column in enumerate(table.columns):
            printed.add_column(column, justify="right" if place >= first else "left", no_wrap=True)
        for row in table.rows:
            texts = [cell.text for cell in row]
            # Digits are aligned whether marked or not.
            printed.add_row(*texts[:first], *(text if text.endswith(MARK) else f"{text} " for text in texts[first:]))
        wide.print(printed)
        for note in table.notes:
            console.print(f"  {note}", soft_wrap=True, markup=False)
    console.print(f"\n{ABOUT}", soft_wrap=True, markup=False)
