"""An append-only file of JSON objects: each result is written at once, so that a killed command loses none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from meetlm.config.files import write_atomic


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
        self._stream: IO[str] | None = None
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self._ends_in_line = not text or text.endswith("\n")
        for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
            entry = _json_object(line)
            if number == 1 and header is not None:
                if entry != header:
                    write_atomic(path, "")
                    self._ends_in_line = True
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
        """Write ``entry`` as the last line; it outlives a kill of this process once this returns."""
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a", encoding="utf-8")
            if not self._ends_in_line:
                self._stream.write("\n")  # a line that was cut off stays a line by itself
            if self._header is not None:
                self._stream.write(json.dumps(self._header, ensure_ascii=False) + "\n")
        self._stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._stream.flush()
        self.entries.append(entry)

    def close(self) -> None:
        """Close the file; a later :meth:`append` opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream, self._header, self._ends_in_line = None, None, True


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
