"""The errors that input can cause. Each names the file and line, field or option, and what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class MeetError(Exception):
    """Base of the errors that the input causes; the command line prints their text without a traceback."""


class ConfigError(MeetError):
    """A recipe, a file of settings or a setting that cannot be used."""


class LevelChoiceError(ConfigError):
    """A level that a run does not have, or that its control cannot use.

    Args:
        message: Text that begins with ``level``.
        option: The option that the level comes from on the command line, which replaces ``level`` there.
    """

    def __init__(self, message: str, option: str = "--level") -> None:
        super().__init__(message)
        self.option = option

    @property
    def option_message(self) -> str:
        """The message for the command line."""
        return self.option + str(self).removeprefix("level")


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
        location = file if line is None else f"{file}:{line}"
        text = f"{location}: " + (f"field {field!r}: " if field else "") + problem
        super().__init__(text + (f"; expected {expected}" if expected else ""))


@contextmanager
def locate_errors(file: str, line: int) -> Iterator[None]:
    """Turn a :class:`ConfigError` into a :class:`DataError` that names the row it is about."""
    try:
        yield
    except ConfigError as error:
        raise DataError(str(error), file=file, line=line) from error


class RunError(MeetError):
    """A run's folder that is missing or incomplete, or lacks a file that is needed."""


class OtherProcessError(RunError):
    """The failure of another process of the job, which reports it itself."""


class DivergedError(RunError):
    """Training whose gradients are not finite. The last checkpoint before that remains."""


def nearest(name: str, known_names: Iterable[str], listing: str | None = None) -> str:
    """Return a hint such as ``; did you mean 'lora'?``, or the list of known names where none is similar.

    Args:
        name: The unknown name.
        known_names: The known names.
        listing: How to list the known names, as a clause that replaces a long list.
    """
    names = sorted(known_names)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if listing:
        return f"{hint} {listing}" if close else f"; {listing}"
    return hint or f"; known: {', '.join(names)}"


def encodable(text: str) -> str:
    """Return a text for a message with what UTF-8 cannot encode escaped: JSON may hold half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
