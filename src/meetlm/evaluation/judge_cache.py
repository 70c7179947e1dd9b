"""Every answer of a judge, on disk as it arrives: a stopped evaluation goes on, and a second one asks nothing.

``judge_calls.jsonl`` is only ever appended to, a call a line, and keeps what was sent and the raw answer, also one that
is empty or cut off: it was paid for. A call is known again by a hash of endpoint, model, messages and sampling
settings; not of the key. The endpoint is part of it since two servers may well have different models under one name. Of
a call that was asked again the last final answer counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

FILE = "judge_calls.jsonl"


@dataclass(frozen=True, slots=True)
class Call:
    """A question to an endpoint.

    Attributes:
        base_url: The endpoint.
        model: Its name there.
        messages: With ``role`` and ``content``.
        sampling: Further fields of the request: temperature, max_tokens, ….
    """

    base_url: str
    model: str
    messages: Sequence[dict[str, str]]
    sampling: dict[str, Any]

    @property
    def key(self) -> str:
        """Names the call."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint answered.

    Attributes:
        text: Raw; empty where there was none.
        finish_reason: As the endpoint told: ``stop``, ``length``, ….
        served_model: The model that answered, as the endpoint told.
        prompt_tokens: As the endpoint told; ``None`` where it did not.
        completion_tokens: Likewise.
    """

    text: str
    finish_reason: str | None
    served_model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None

    @property
    def is_empty(self) -> bool:
        """Whether there is no text in it."""
        return not self.text.strip()


class AnswerCache:
    """Answers by call. Use it as a context manager: it closes its file.

    Args:
        folder: Of the file; made where it is missing.

    Attributes:
        file: The file.
        damaged: Lines that are no whole entry, as ``file:line``: a kill may cut the last one off. They are left in
            place, and their calls are asked again.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / FILE
        self.damaged: list[str] = []
        self._final: dict[str, Answer] = {}
        self._every: dict[str, list[Answer]] = {}
        self._opened: IO[bytes] | None = None
        self._torn = False  # the last line has no end
        if self.file.is_file():
            with self.file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    self._read(line, number)
                    self._torn = not line.endswith(b"\n")

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened:
            self._opened.close()

    def get(self, key: str) -> Answer | None:
        """Return the answer to a call; ``None`` where it has none that is final."""
        return self._final.get(key)

    def every(self, key: str) -> Sequence[Answer]:
        """Return all answers to a call, each of them paid for, in the order in which they came."""
        return self._every.get(key, ())

    def add(self, call: Call, answer: Answer, *, final: bool = True) -> None:
        """Keep an answer, on disk when this returns.

        Args:
            call: What was asked.
            answer: What came.
            final: Whether it is the call's answer; not where it is tried again.
        """
        key = call.key
        entry = {"key": key, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        line = json.dumps(entry | asdict(call) | {"answer": asdict(answer), "final": final}) + "\n"
        if self._opened is None:
            self._opened = self.file.open("ab")
            if self._torn:
                line = "\n" + line  # what was cut off stays a line of its own
        self._opened.write(line.encode())
        self._opened.flush()
        self._keep(key, answer, final)

    def _keep(self, key: str, answer: Answer, final: bool) -> None:
        self._every.setdefault(key, []).append(answer)
        if final:
            self._final[key] = answer

    def _read(self, line: bytes, number: int) -> None:
        try:
            entry = json.loads(line)
            answer = Answer(**{field.name: entry["answer"][field.name] for field in fields(Answer)})
            key, final = entry["key"], entry.get("final", True)
            if not isinstance(answer.text, str) or not isinstance(key, str) or not isinstance(final, bool):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            self.damaged.append(f"{self.file}:{number}")
        else:
            self._keep(key, answer, final)
