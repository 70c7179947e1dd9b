"""What the command line prints: results on stdout; messages, warnings and progress bars on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from meetlm.config.reporter import Progress, Reporter
from meetlm.config.world import World

if TYPE_CHECKING:
    from meetlm.report.tables import Table as ReportTable

UNLIMITED = 10_000
"""Width of a table that is not printed to a terminal."""
NUMERIC = tuple("0123456789+-−") + ("",)
"""First characters of a number, and no character."""


def quiet_libraries(*, warnings: bool = True) -> None:
    """Keep transformers and datasets from drawing progress bars.

    Args:
        warnings: Whether transformers prints its warnings.
    """
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    if not warnings:
        transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with numbers aligned on the right. A terminal folds long cells; elsewhere each row is one line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, head in enumerate(heads):
        is_numeric = all(row[number][:1] in NUMERIC for row in rows)
        table.add_column(head, justify="right" if is_numeric else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNLIMITED
    console.print(table)


def print_report_table(table: ReportTable) -> None:
    """Print a table of a report with its caption and notes."""
    click.echo(table.caption)
    print_table(table.columns, [[f"{cell.text} {cell.small}".rstrip() for cell in row] for row in table.rows])
    for note in table.notes:
        click.echo(f"  {note}")
    click.echo()


class _Bar(Progress):
    def __init__(self, bar: tqdm[None]) -> None:
        self._bar = bar

    def advance(self, count: int = 1) -> None:
        """Advance the bar."""
        self._bar.update(count)

    def add_total(self, count: int) -> None:
        """Extend the bar."""
        self._bar.total = (self._bar.total or 0) + count
        self._bar.refresh()

    def show(self, **values: str) -> None:
        """Show values behind the bar."""
        self._bar.set_postfix(values, refresh=False)


class ConsoleReporter(Reporter):
    """Writes messages and progress bars to stderr.

    Args:
        quiet: Show no progress bars; messages and warnings stay.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet, self._is_main = quiet, World.from_environment().is_main

    def message(self, text: str) -> None:
        """Write ``text`` as a line."""
        if self._is_main:
            click.echo(text, err=True)

    def warning(self, text: str) -> None:
        """Write ``text`` as a line that begins with ``warning:``."""
        if self._is_main:
            click.echo(f"warning: {text}", err=True)

    @contextmanager
    def progress(
        self, title: str, *, total: int | None = None, unit: str = "sequence", initial: int = 0
    ) -> Iterator[Progress]:
        """Show a tqdm bar, removed at the end; none if there is nothing to do."""
        is_hidden = self.quiet or not self._is_main or total == 0
        with tqdm(total=total, desc=title, unit=f" {unit}", initial=initial, disable=is_hidden, leave=False) as bar:
            yield _Bar(bar)
