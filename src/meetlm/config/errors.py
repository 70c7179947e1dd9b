"""The errors a user can cause. Each names the place (file, line, field or option) and what is expected there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class MeetError(Exception):
    """Base of the errors that the input causes; the command line prints their text without a traceback."""


class ConfigError(MeetError):
    """A recipe, a file of settings or a setting that cannot be used."""


class DataError(MeetError):
    """A row or file of data that cannot be used.

    Args:
        problem: What is wrong, in one clause.
        file: The file or hub name.
        line: 1-based line of a text file, or 1-based row of a table; ``None`` when the error concerns the whole file.
        field: The field at fault, if any.
        expected: What is expected instead.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str,
        line: int | None = None,
        field: str | None = None,
        expected: str | None = None,
    ) -> None:
        self.problem, self.file, self.line, self.field, self.expected = problem, file, line, field, expected
        where = file if line is None else f"{file}:{line}"
        text = f"{where}: " + (f"field {field!r}: " if field else "") + problem
        super().__init__(text + (f"; expected {expected}" if expected else ""))


@contextmanager
def locate_errors(file: str, line: int) -> Iterator[None]:
    """Turn a :class:`ConfigError` into a :class:`DataError` that names the row it is about."""
    try:
        yield
    except ConfigError as error:
        raise DataError(str(error), file=file, line=line) from error


class RunError(MeetError):
    """A folder of a run that is missing, incomplete or does not hold what is asked for."""


class DivergedError(RunError):
    """Training whose gradients are not finite. The last checkpoint before is kept."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``; did you mean 'lora'?``, or the list of known names where none is similar."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
