"""The errors a user can cause. Each names the place (file, line, field) and what was expected there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MeetError(Exception):
    """Base of every error that is the input's fault; the command line prints its text without a traceback."""


class ConfigError(MeetError):
    """A recipe, a config file or an override that cannot be used."""


class DataError(MeetError):
    """A row or file of data that cannot be read as what it claims to be.

    Args:
        problem: What is wrong, in one clause.
        file: The file (or hub name) it stands in.
        line: 1-based line of a text file, or 1-based row of a table; ``None`` when it concerns the whole file.
        field: The field at fault, if one is.
        expected: What should have stood there.
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


class RunError(MeetError):
    """A run folder that is missing, incomplete, or asked for what it does not hold."""


class DivergedError(RunError):
    """Training whose gradients are no numbers any more. What was trained before stays in the last checkpoint."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``; did you mean 'lora'?``, or the list of known names where nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
