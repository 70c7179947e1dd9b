"""Reads completions: files of ``meet generate``, or of anyone, JSON lines with ``prompt`` and ``completion``.

What a file does not state is ``None`` and said so in the report; what is wrong with a row is an error that names it, or
a :class:`Problem` where the rest still means something.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meetlm.data.example import Origin, Text, Turn
from meetlm.data.pairs import text_or_turns
from meetlm.data.rows import Row, read_file
from meetlm.evaluation.record import Problem, System

SHOWN = 5
"""Rows named in a problem."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion.

    Attributes:
        prompt: Text or messages.
        completion: Text; may be empty.
        seed: 0 where the row does not say.
        num_tokens: As the row says.
        origin: File and line.
    """

    prompt: Text
    completion: str
    seed: int
    num_tokens: int | None
    origin: Origin

    @property
    def key(self) -> tuple[str, int]:
        """Prompt and seed."""
        return prompt_id(self.prompt), self.seed


@dataclass(frozen=True, slots=True)
class Answers:
    """All completions of a system.

    Attributes:
        system: Where they come from.
        by_cell: By prompt id and seed.
        problems: What is wrong with some rows.
    """

    system: System
    by_cell: dict[tuple[str, int], Answer]
    problems: list[Problem]

    @property
    def seeds(self) -> list[int]:
        """Of all rows, sorted."""
        return sorted({seed for _, seed in self.by_cell})


def prompt_id(prompt: Text) -> str:
    """Return a short hash that names a prompt: the same for the same text or messages."""
    turns = prompt.strip() if isinstance(prompt, str) else [[turn.role, turn.content.strip()] for turn in prompt]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()[:12]


def read_answers(name: str, files: Sequence[Path]) -> Answers:
    """Return the completions of a system.

    Files that have a seed in common are replicates (of runs trained under several seeds): their place in ``files`` then
    counts as the seed.

    Args:
        name: Of the system.
        files: JSON lines; the fields ``seed`` (0), ``level``, ``sampling``, ``run`` and ``num_tokens`` may be missing.

    Raises:
        DataError: A row has no prompt or no completion, or states another level or sampling than the first one.
    """
    rows = [list(read_file(file)) for file in files]
    level, sampling = (_alike(name, [row for of_file in rows for row in of_file]) for name in ("level", "sampling"))
    runs = dict.fromkeys(run for of_file in rows for row in of_file if (run := row.fields.get("run")) is not None)
    read = [[_answer(row) for row in of_file] for of_file in rows]
    kept: dict[tuple[str, int], Answer] = {}
    again: list[Answer] = []
    for answer in _replicates(read):
        if kept.setdefault(answer.key, answer) is not answer:
            again.append(answer)
    problems = [
        *_problem(f"{name}: a prompt again under the same seed; its first completion counts", again),
        *_problem(
            f"{name}: empty completions, compared like any other",
            [answer for answer in kept.values() if not answer.completion.strip()],
        ),
    ]
    system = System(name, [str(file) for file in files], ", ".join(map(str, runs)) or None, level, sampling)
    return Answers(system, kept, problems)


def prompt_text(prompt: Text) -> str:
    """Return a prompt as plain text; a conversation as ``role: content`` paragraphs."""
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)


def as_json(prompt: Text) -> str | list[dict[str, str]]:
    """Return a prompt as JSON has it."""
    return prompt if isinstance(prompt, str) else [{"role": t.role, "content": t.content} for t in prompt]


def from_json(prompt: str | list[dict[str, str]]) -> Text:
    """Return what :func:`as_json` was given."""
    return prompt if isinstance(prompt, str) else tuple(Turn(one["role"], one["content"]) for one in prompt)


def _answer(row: Row) -> Answer:
    prompt = text_or_turns(row, "prompt")
    if not prompt_text(prompt).strip():
        raise row.error("is empty", field="prompt", expected="some text")
    seed = row.number("seed") if row.fields.get("seed") is not None else 0
    tokens = row.number("num_tokens") if row.fields.get("num_tokens") is not None else None
    return Answer(prompt, row.text("completion"), seed, tokens, row.origin)


def _alike(field: str, rows: Sequence[Row]) -> Any:
    """Return what all rows state for a field, ``None`` where they state nothing."""
    first = rows[0].fields.get(field)
    for row in rows:
        if row.fields.get(field) != first:
            raise row.error(
                f"is {json.dumps(row.fields.get(field))}",
                field=field,
                expected=f"the same in all rows of a system: {json.dumps(first)} in {rows[0].origin}",
            )
    return first


def _replicates(files: Sequence[Sequence[Answer]]) -> Iterable[Answer]:
    seeds = [{answer.seed for answer in answers} for answers in files]
    if sum(map(len, seeds)) == len(set().union(*seeds)):
        return [answer for answers in files for answer in answers]
    return [replace(answer, seed=number) for number, answers in enumerate(files) for answer in answers]


def _problem(what: str, answers: Iterable[Answer]) -> list[Problem]:
    found = [str(answer.origin) for answer in answers]
    return [Problem(what, len(found), found[:SHOWN])] if found else []
