"""The reporter of the command line: messages and progress bars on stderr, so that stdout holds results only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from tqdm import tqdm

from meetlm.config.reporter import Progress, Reporter


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
        self.quiet = quiet

    def message(self, text: str) -> None:
        """Write ``text`` as a line."""
        click.echo(text, err=True)

    def warning(self, text: str) -> None:
        """Write ``text`` as a line that begins with ``warning:``."""
        click.echo(f"warning: {text}", err=True)

    @contextmanager
    def progress(
        self, title: str, *, total: int | None = None, unit: str = "sequence", initial: int = 0
    ) -> Iterator[Progress]:
        """Show a tqdm bar, removed at the end."""
        with tqdm(total=total, desc=title, unit=unit, initial=initial, disable=self.quiet, leave=False) as bar:
            yield _Bar(bar)
