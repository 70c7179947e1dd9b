"""``meet paper``: the results that the paper reports, with errata marked."""

from __future__ import annotations

import click

from meetlm.cli.console import print_json, print_report_table
from meetlm.cli.main import main
from meetlm.cli.options import Count, json_option


@main.command(short_help="Print Tables 1 to 5 of MEET's paper, with errata marked.")
@click.option("--table", "number", type=Count(1, 5), help="Print this table only.  [default: all]")
@json_option
def paper(number: int | None, as_json: bool) -> None:
    """Print the win, lose and tie rates and Δ of the paper's Tables 1 to 5. Inconsistent numbers are marked.

    \b
    Examples:
      meet paper
      meet paper --table 3
    """  # noqa: D301  click's mark is a real backspace
    from meetlm.report.paper import ABOUT, paper_records, paper_tables

    if as_json:
        print_json([record for record in paper_records() if number in (None, record["number"])])
        return
    for key, table in paper_tables().items():
        if number in (None, key):
            print_report_table(table)
    click.echo(ABOUT)
