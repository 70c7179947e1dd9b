"""The record of a completion: one line of ``completions/*.jsonl``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from meetlm.data.example import Message


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """One line of ``completions/*.jsonl``.

    Attributes:
        prompt: Text or messages, as passed.
        completion: Text of the reply, stripped.
        level: Name, or weights by name.
        sampling: Temperature, top-p, maximum number of new tokens, stop strings; with guidance, its strength and the
            level that it moves away from.
        seed: Seed of sampling.
        run: Id of the run.
        num_tokens: Number of new tokens.
        finish: Why it ended: ``eos``, ``stop`` (a stop string) or ``length``.
    """

    prompt: str | list[Message]
    completion: str
    level: str | dict[str, float]
    sampling: dict[str, Any]
    seed: int
    run: str
    num_tokens: int
    finish: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)
