"""An append-only file of JSON objects: each result is written at once, so that a killed command loses none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from meetlm.config.errors import RunError
from meetlm.config.files import explain_write_errors, lock, write_atomic

T = TypeVar("T")


class Journal:
    """JSON objects, one per line, appended one by one. Use it as a context manager: it closes its file.

    Args:
        path: The file; it and its folder are created with the first entry.
        header: Identifies the settings that the entries belong to. It is the first line; a file with another first line
            is replaced, so that results of different settings are never mixed.

    Attributes:
        entries: The objects in the file, in order, without the header.
        damaged: Lines that are not JSON objects, as ``file:line``; a kill may cut the last one off. They stay in the
            file and are not in :attr:`entries`.
    """

    def __init__(self, path: Path, header: dict[str, Any] | None = None) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self.damaged: list[str] = []
        self._header = header
        self._stream: FileIO | None = None
        contents = path.read_bytes() if path.is_file() else b""
        self._num_bytes = len(contents)
        text = contents.decode("utf-8", errors="replace")
        self._ends_in_line = not text or text.endswith("\n")
        for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
            entry = _json_object(line)
            if number == 1 and header is not None:
                if entry != header:
                    with path.open("ab") as stream:
                        lock(stream.fileno(), path)
                        write_atomic(path, "")
                    self._num_bytes, self._ends_in_line = 0, True
                    break
                self._header = None  # it is in the file
            elif entry is None:
                self.damaged.append(f"{path}:{number}")
            else:
                self.entries.append(entry)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def append(self, entry: dict[str, Any]) -> None:
        """Write ``entry`` as the last line; it outlives a kill of this process once this returns.

        Raises:
            RunError: Another process writes to the file, or the disk is full.
        """
        with explain_write_errors(self.path):
            if self._stream is None:
                self._open()
            self._write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.entries.append(entry)

    def _open(self) -> None:
        """Open the file for this process alone, and complete its beginning."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("ab", buffering=0)  # nothing is left to write when the disk is full
        lock(self._stream.fileno(), self.path)
        if self._stream.tell() != self._num_bytes:
            raise RunError(f"another process has written to {self.path}: run the same command again to continue")
        if not self._ends_in_line:
            self._write("\n")  # a line that was cut off stays a line by itself
        if self._header is not None:
            self._write(json.dumps(self._header, ensure_ascii=False) + "\n")

    def _write(self, text: str) -> None:
        assert self._stream is not None
        rest = memoryview(text.encode())
        while rest:
            rest = rest[self._stream.write(rest) :]

    def close(self) -> None:
        """Close the file; a later :meth:`append` opens it again."""
        if self._stream is not None:
            self._num_bytes = self._stream.tell()
            self._stream.close()
            self._stream, self._header, self._ends_in_line = None, None, True


def stored_or_computed(
    journal: Journal, rows: Mapping[str, T], compute: Callable[[list[T]], Sequence[Any]], chunk: int
) -> dict[str, Any]:
    """Return a result for each row: those in the journal; others are computed and appended, a chunk at a time.

    Args:
        journal: Its entries are results by key.
        rows: The rows by their keys.
        compute: Returns a result, a JSON value, for each row of a list.
        chunk: Number of rows that are computed before their results are written.
    """
    results = {key: value for entry in journal.entries for key, value in entry.items() if key in rows}
    missing = [key for key in rows if key not in results]
    for start in range(0, len(missing), chunk):
        keys = missing[start : start + chunk]
        journal.append(dict(zip(keys, compute([rows[key] for key in keys]), strict=True)))
        results |= journal.entries[-1]
    return results


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
