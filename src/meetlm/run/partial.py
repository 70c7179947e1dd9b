"""Completions as they come: they stand beside the file that they will be, so that a stopped call loses none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from meetlm.config.files import write_atomic

UNFINISHED = ".unfinished"
"""What the name of the file ends with until all lines are there."""


class Partial:
    """Lines of JSON that will be a file once all are there, in the order of their numbers. A context.

    Args:
        path: The file; its lines stand in ``PATH.unfinished`` until then.
        decides: All that decides the lines, as JSON values: what stands there of something else is dropped.

    Attributes:
        done: The lines that are there, by number.
    """

    def __init__(self, path: Path, decides: Any) -> None:
        self.path, self._place = path, path.with_name(path.name + UNFINISHED)
        self.done: dict[int, dict[str, Any]] = {}
        head = {"of": hashlib.sha256(json.dumps(decides, ensure_ascii=False).encode()).hexdigest()}
        if self._place.is_file():
            self._read(head)
        kept = [head, *({"number": number, "line": line} for number, line in self.done.items())]
        write_atomic(self._place, "".join(_dumps(one) + "\n" for one in kept))  # without what a kill cut off
        self._lines = self._place.open("a", encoding="utf-8")

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()

    def add(self, number: int, line: dict[str, Any]) -> None:
        """Write a line."""
        self.done[number] = line
        self._lines.write(_dumps({"number": number, "line": line}) + "\n")
        self._lines.flush()

    def finish(self) -> None:
        """Make the file."""
        self._lines.close()
        write_atomic(self.path, "".join(_dumps(self.done[number]) + "\n" for number in sorted(self.done)))
        self._place.unlink(missing_ok=True)

    def _read(self, head: dict[str, Any]) -> None:
        lines = self._place.read_text(encoding="utf-8", errors="replace").split("\n")
        for place, line in enumerate(lines):
            try:
                value = json.loads(line)
            except json.JSONDecodeError:  # the end, or the line that a kill cut off
                return
            if place == 0 and value != head:
                return
            if place:
                self.done[value["number"]] = value["line"]


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
