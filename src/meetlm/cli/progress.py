"""Progress bars of code that takes ``on_done``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Bar:
    """Counts what is done; with a total to come it shows the time left too. It appears when it is first told of work.

    Args:
        title: What is being done.
        unit: What is counted.
        quiet: Show nothing.
    """

    def __init__(self, title: str, unit: str, quiet: bool) -> None:
        self.title, self.unit, self.quiet = title, unit, quiet
        self._shown: tqdm[None] | None = None

    def __call__(self, number: int) -> None:
        """Count ``number`` more as done."""
        self._bar().update(number)

    def expect(self, number: int) -> None:
        """Add ``number`` to what there is to do in all."""
        bar = self._bar()
        bar.total = (bar.total or 0) + number
        bar.refresh()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._shown is not None:
            self._shown.close()

    def _bar(self) -> tqdm[None]:
        if self._shown is None:
            self._shown = tqdm(desc=self.title, unit=self.unit, disable=self.quiet)
        return self._shown


@contextmanager
def bar(title: str, *, unit: str = "prompt", quiet: bool = False) -> Iterator[Bar]:
    """Give a bar, closed at the end."""
    one = Bar(title, unit, quiet)
    try:
        yield one
    finally:
        one.close()
