"""A reporter that records what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from meetlm.config.reporter import Progress, Reporter


class RecordingReporter(Reporter, Progress):
    """Records messages, totals and the counts of progress.

    Args:
        on_advance: Called with each count, for tests that stop work in the middle.
    """

    def __init__(self, on_advance: Callable[[int], object] | None = None) -> None:
        self.messages: list[str] = []
        self.counts: list[int] = []
        self.totals: list[int | None] = []
        self._on_advance = on_advance

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.messages.append(f"warning: {text}")

    def advance(self, count: int = 1) -> None:
        self.counts.append(count)
        if self._on_advance:
            self._on_advance(count)

    @contextmanager
    def progress(
        self, title: str, *, total: int | None = None, unit: str = "sequence", initial: int = 0
    ) -> Iterator[Progress]:
        self.totals.append(total)
        yield self
