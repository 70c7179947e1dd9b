"""The file of feedback that the playground collects: rows in TRL's unpaired format, which `meet train` reads."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

from meetlm.config.files import write_atomic
from meetlm.data.example import Prompt

FEEDBACK = "feedback.jsonl"
"""Name of the file in the folder of a run."""


class FeedbackFile:
    """Rows with prompt, completion and label; one can be removed again.

    Args:
        path: The file; created by the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()

    def add(self, prompt: Prompt, completion: str, label: bool, model: str) -> str:
        """Append a row and return its id."""
        reply: Any = [{"role": "assistant", "content": completion}] if prompt.is_chat else completion
        identifier = uuid4().hex
        row = {
            "prompt": prompt.to_json(),
            "completion": reply,
            "label": label,
            "model": model,
            "id": identifier,
        }
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return identifier

    def remove(self, identifier: str) -> bool:
        """Remove a row and return whether there was one."""
        with self._lock:
            if not self.path.exists():
                return False
            lines = self.path.read_bytes().splitlines()  # of bytes: texts may contain other line breaks, such as U+2028
            rest = [line for line in lines if json.loads(line)["id"] != identifier]
            if len(rest) == len(lines):
                return False
            write_atomic(self.path, b"".join(line + b"\n" for line in rest).decode())
            return True
