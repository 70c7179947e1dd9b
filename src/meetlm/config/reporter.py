"""Messages, warnings and progress of library code; the command line shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """The progress of one task. This base class shows nothing."""

    def advance(self, count: int = 1) -> None:
        """Record that ``count`` more units are done."""

    def add_total(self, count: int) -> None:
        """Add ``count`` units to the total, for tasks of unknown size."""

    def show(self, **values: str) -> None:
        """Show named values, such as the loss, next to the progress."""


class Reporter:
    """Receives messages, warnings and progress of library code. This base class discards them.

    The last keyword argument of every function that reports is ``reporter: Reporter = SILENT``.
    """

    def message(self, text: str) -> None:
        """Show one line about what is being done."""

    def warning(self, text: str) -> None:
        """Show one line about a likely problem that does not stop the work."""

    @contextmanager
    def progress(
        self, title: str, *, total: int | None = None, unit: str = "sequence", initial: int = 0
    ) -> Iterator[Progress]:
        """Show the progress of a task for as long as the context is open.

        Args:
            title: What is being done.
            total: Number of units; ``None`` while it is unknown (see :meth:`Progress.add_total`).
            unit: Name of one unit.
            initial: Units done before, for resumed work.
        """
        yield Progress()


SILENT = Reporter()
"""Discards everything: the default of library functions."""
