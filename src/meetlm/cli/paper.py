"""``meet paper``: what the paper itself reports, its errata marked."""

from __future__ import annotations

import click


@click.command(short_help="Print the paper's own Tables 1 to 5, errata marked.")
@click.option("--table", "number", type=click.IntRange(1, 5), help="One table  [default: all].")
def paper(number: int | None) -> None:
    """Print the win, lose and tie rates and Δ of the paper's Tables 1 to 5, what contradicts itself in them marked.

    \b
    meet paper
    meet paper --table 3
    """  # noqa: D301  click's mark is a real backspace
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from meetlm.evaluation.paper import MARK
    from meetlm.report.paper import ABOUT, paper_table

    console = Console(highlight=False)
    wide = Console(width=max(console.width, 120), highlight=False)  # a row stays on its line, in a pipe too
    for one in (paper_table(each) for each in ([number] if number else range(1, 6))):
        console.print(one.caption, soft_wrap=True, markup=False)
        table = Table(box=box.SIMPLE_HEAD)
        first = one.columns.index("Win")
        for place, column in enumerate(one.columns):
            table.add_column(column, justify="right" if place >= first else "left", no_wrap=True)
        for row in one.rows:
            texts = [cell.text for cell in row]
            # Digits stand below digits, marked or not.
            table.add_row(*texts[:first], *(t if t.endswith(MARK) else f"{t} " for t in texts[first:]))
        wide.print(table)
        for note in one.notes:
            console.print(f"  {note}", soft_wrap=True, markup=False)
        if one.notes:
            console.print()
    console.print(ABOUT, soft_wrap=True, markup=False)
