"""Reads completions: files of ``meet generate``, or of anyone, JSON lines with ``prompt`` and ``completion``.

What a file does not state is ``None`` and said so in the report; what is wrong with a row is an error that names it, or
a :class:`Problem` where the rest still means something.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from meetlm.data.example import Origin, Prompt
from meetlm.data.pairs import read_prompt
from meetlm.data.rows import Row, kind_of, read_file
from meetlm.evaluation.record import Problem, System

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion.

    Attributes:
        prompt: What it completes.
        completion: Text; may be empty.
        seed: 0 where the row does not say.
        origin: File and line.
        run: The run that the row states; ``None`` where it states none.
        place: Which of the system's places it is from.
        sampling_seed: What the row says, whatever number ``seed`` is given.
    """

    prompt: Prompt
    completion: str
    seed: int
    origin: Origin
    run: str | None = None
    place: int = 0
    sampling_seed: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """Prompt and seed."""
        return self.prompt.id, self.seed


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


def read_answers(name: str, places: Sequence[Sequence[Path]]) -> Answers:
    """Return the completions of a system.

    Places that have a seed in common are replicates (of runs trained under several seeds): what counts as the seed is
    then the number of a place and seed among all of them.

    Args:
        name: Of the system.
        places: The files of each place: JSON lines. The fields ``seed`` (0), ``level``, ``sampling`` and ``run`` may be
            missing.

    Raises:
        DataError: A row has no prompt or no completion, states something that is none, or another level or sampling
            than the first one.
    """
    rows = [[row for file in files for row in read_file(file)] for files in places]
    every = [row for of_place in rows for row in of_place]
    level, sampling = _alike("level", every, _level), _alike("sampling", every, _sampling)
    runs = dict.fromkeys(row.text("run") for row in every if row.fields.get("run") is not None)
    kept: dict[tuple[str, int], Answer] = {}
    again: list[Answer] = []
    for answer in _replicates([[_answer(row, n) for row in found] for n, found in enumerate(rows)]):
        first = kept.setdefault(answer.key, answer)
        other = answer.origin.file == first.origin.file or answer.completion != first.completion
        if first is not answer and other:
            again.append(answer)
    problems = [
        *_problem(f"{name}: a prompt again under the same seed; its first completion counts", again),
        *_problem(
            f"{name}: empty completions, compared like any other",
            [answer for answer in kept.values() if not answer.completion.strip()],
        ),
    ]
    files = [str(file) for of_place in places for file in of_place]
    system = System(name, files, ", ".join(runs) or None, level, sampling)
    return Answers(system, kept, problems)


def _answer(row: Row, place: int) -> Answer:
    prompt = read_prompt(row, "prompt")
    if prompt.is_blank:
        raise row.error("is empty", field="prompt", expected="some text")
    seed = row.number("seed") if row.fields.get("seed") is not None else 0
    run = row.text("run") if row.fields.get("run") is not None else None
    return Answer(prompt, row.text("completion"), seed, row.origin, run, place, seed)


def _level(row: Row) -> str | dict[str, float] | None:
    """Return the level that a row states."""
    level = row.fields.get("level")
    if isinstance(level, dict) and all(isinstance(weight, int | float) for weight in level.values()):
        return level
    return None if level is None else row.value("level", "a name, or an object of weights", str)


def _sampling(row: Row) -> dict[str, Any] | None:
    """Return the sampling that a row states: what is null is not stated, but for ``stop``, which then is empty."""
    if row.fields.get("sampling") is None:
        return None
    stated = row.inside("sampling")
    found = {name: value for name, value in stated.fields.items() if value is not None or name == "stop"}
    for name in ("temperature", "top_p", "max_new_tokens"):
        if name in found and (isinstance(found[name], bool) or not isinstance(found[name], int | float)):
            raise stated.error(f"is {kind_of(found[name])}", field=name, expected="a number")
    if "stop" in found:
        stop = found["stop"] or []
        found["stop"] = [stop] if isinstance(stop, str) else stop
        if not isinstance(stop, list | str) or not all(isinstance(one, str) for one in stop):
            raise stated.error(f"is {json.dumps(stop)}", field="stop", expected="a string or a list of them")
    return found


def _alike(field: str, rows: Sequence[Row], read: Callable[[Row], T]) -> T:
    """Return what all rows state for a field, ``None`` where they state nothing."""
    first = read(rows[0])
    for row in rows:
        if (stated := read(row)) != first:
            raise row.error(
                f"is {json.dumps(stated)}",
                field=field,
                expected=f"the same in all rows of a system: {json.dumps(first)} in {rows[0].origin}",
            )
    return first


def _replicates(places: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Return the answers of all places, those of each place and seed under a seed of their own."""
    pairs = sorted({(number, answer.seed) for number, answers in enumerate(places) for answer in answers})
    if len(pairs) == len({seed for _, seed in pairs}):
        return [answer for answers in places for answer in answers]
    numbers = {pair: number for number, pair in enumerate(pairs)}
    return [
        replace(answer, seed=numbers[number, answer.seed])
        for number, answers in enumerate(places)
        for answer in answers
    ]


def _problem(what: str, answers: Iterable[Answer]) -> list[Problem]:
    found = [str(answer.origin) for answer in answers]
    return [Problem(what, len(found), found)] if found else []
