"""Every response of a judge, on disk as it arrives: an interrupted evaluation continues, a repeated one asks nothing.

``judge_calls.jsonl`` holds one response per line with what was sent, also empty and cut responses: they were paid for.
A call is identified by a hash of endpoint, model, messages and sampling settings. Of several responses to a call the
last one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meetlm.config.journal import Journal
from meetlm.evaluation.judge_client import Call, JudgeResponse

FILE = "judge_calls.jsonl"


class ResponseCache:
    """Responses by call. Use it as a context manager: it closes its file.

    Args:
        folder: Folder of the file; created with the first response.

    Attributes:
        file: The file.
        damaged: Lines that are not responses, as ``file:line``; a kill may cut the last one off. They stay in the file,
            and their calls are asked again.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self._journal = Journal(self.file)
        self.damaged = list(self._journal.damaged)
        self._last: dict[str, JudgeResponse] = {}
        self._all: dict[str, list[JudgeResponse]] = {}
        for entry in self._journal.entries:
            try:
                response = JudgeResponse(**{field.name: entry["answer"][field.name] for field in fields(JudgeResponse)})
                self._store(entry["key"], response, is_final=entry.get("final", True))
            except (KeyError, TypeError):
                self.damaged.append(str(self.file))

    def __enter__(self) -> ResponseCache:
        return self

    def __exit__(self, *error: object) -> None:
        self._journal.close()

    def get(self, key: str) -> JudgeResponse | None:
        """Return the response to a call; ``None`` where there is none."""
        return self._last.get(key)

    def all(self, key: str) -> Sequence[JudgeResponse]:
        """Return all responses to a call, each of them paid for, in the order of their arrival."""
        return self._all.get(key, ())

    def add(self, call: Call, response: JudgeResponse) -> None:
        """Store a response; it is on disk when this returns."""
        entry: dict[str, Any] = {"key": call.key, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        self._journal.append(entry | asdict(call) | {"answer": asdict(response)})
        self._store(call.key, response, is_final=True)

    def _store(self, key: str, response: JudgeResponse, *, is_final: bool) -> None:
        """Remember a response; files of version 0 hold empty ones that were retried, which are not final."""
        self._all.setdefault(key, []).append(response)
        if is_final:
            self._last[key] = response
