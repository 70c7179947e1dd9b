"""What every data source is turned into. Knows no tokenizer, no model, no file format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


T = TypeVar("T")

Text = str | tuple[Turn, ...]
"""Plain text, or a conversation that the tokenizer's chat template will render."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an example was read: ``file`` (or hub name) and its 1-based ``line`` (row, for tables)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    r"""A pair (x, y_w, y_l) of the paper's section 3.1.

    Attributes:
        prompt: x. For plain text it ends where the completion begins (HH: after the last ``\n\nAssistant:``).
        chosen: y_w, the completion alone (a string with its leading space, or assistant turns).
        rejected: y_l, likewise.
        group: What one prompt or post is: evaluation keeps one row a group, bootstraps resample groups.
        origin: Where it was read.
        rejected_prompt: The prompt of the rejected side where it differs from ``prompt``, else ``None``.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    group: str
    origin: Origin
    rejected_prompt: Text | None = None


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """A split as read, unfiltered and in the order of the file.

    Attributes:
        rows: What was made of each of its rows.
        elsewhere: Rows that lie beside them and state another split, which are left out.
    """

    rows: list[T]
    elsewhere: list[Origin]


def prompt_id(prompt: Text) -> str:
    """Return a short hash that names a prompt: the same for the same text or messages."""
    turns = prompt.strip() if isinstance(prompt, str) else [[turn.role, turn.content.strip()] for turn in prompt]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()[:12]


def fingerprint(rows: Iterable[tuple[Text | None, ...]]) -> str:
    """Return a hash of the texts of rows, in order: who has the same one has the same rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()
