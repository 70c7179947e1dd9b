"""Reads completions: JSON lines with ``prompt`` and ``completion``, written by ``meet generate`` or another program.

What a file does not state is ``None``, and the report says so. What is wrong with a row is an error that names it, or a
:class:`Problem` where the other rows can still be compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from meetlm.data.example import Origin, Prompt
from meetlm.data.messages import read_prompt
from meetlm.data.rows import Row, kind_of, read_file
from meetlm.evaluation.record import Problem, System

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SystemCompletion:
    """One completion of a system.

    Attributes:
        prompt: The prompt.
        text: The completion; may be empty.
        seed: Number of the replicate: the row's seed, or a number for place and seed (:func:`read_completions`).
        origin: File and line.
        run: The run that the row states; ``None`` where it states none.
        place: Index of the system's place that the row is from.
        sampling_seed: The seed that the row states; 0 where it states none.
    """

    prompt: Prompt
    text: str
    seed: int
    origin: Origin
    run: str | None = None
    place: int = 0
    sampling_seed: int = 0


@dataclass(frozen=True, slots=True)
class SystemCompletions:
    """All completions of a system.

    Attributes:
        system: Where they come from.
        by_cell: Completions by prompt id and seed.
        problems: Problems of some rows.
    """

    system: System
    by_cell: dict[tuple[str, int], SystemCompletion]
    problems: list[Problem]

    @property
    def seeds(self) -> list[int]:
        """The seeds of all rows, sorted."""
        return sorted({seed for _, seed in self.by_cell})


def read_completions(name: str, places: Sequence[Sequence[Path]]) -> SystemCompletions:
    """Return the completions of a system.

    Places with a seed in common are replicates (such as runs trained under several seeds): each place and seed then
    gets a number, which counts as the seed.

    Args:
        name: Name of the system.
        places: The files of each place: JSON lines with ``prompt`` and ``completion``; ``seed`` (0), ``level``,
            ``sampling`` and ``run`` are optional.

    Raises:
        DataError: A row has no prompt or completion, a field is of the wrong type, or level or sampling differ from the
            first row's.
    """
    rows = [[row for file in files for row in read_file(file)] for files in places]
    all_rows = [row for place_rows in rows for row in place_rows]
    level, sampling = _stated_by_all("level", all_rows, _level), _stated_by_all("sampling", all_rows, _sampling)
    runs = dict.fromkeys(row.text("run") for row in all_rows if row.fields.get("run") is not None)
    by_cell: dict[tuple[str, int], SystemCompletion] = {}
    repeated: list[SystemCompletion] = []
    for completion in _number_replicates(
        [_completion(row, place) for place, place_rows in enumerate(rows) for row in place_rows]
    ):
        first = by_cell.setdefault((completion.prompt.id, completion.seed), completion)
        is_copy = completion.origin.file != first.origin.file and completion.text == first.text
        if first is not completion and not is_copy:
            repeated.append(completion)
    empty = [completion for completion in by_cell.values() if not completion.text.strip()]
    files = [str(file) for place_files in places for file in place_files]
    return SystemCompletions(
        System(name, files, ", ".join(runs) or None, level, sampling),
        by_cell,
        [
            *_problem(f"{name}: a prompt repeated under the same seed; its first completion counts", repeated),
            *_problem(f"{name}: empty completions, compared like any other", empty),
        ],
    )


def _completion(row: Row, place: int) -> SystemCompletion:
    prompt = read_prompt(row, "prompt")
    if prompt.is_blank:
        raise row.error("is empty", field="prompt", expected="some text")
    seed = row.number("seed") if row.fields.get("seed") is not None else 0
    run = row.text("run") if row.fields.get("run") is not None else None
    return SystemCompletion(prompt, row.text("completion"), seed, row.origin, run, place, seed)


def _level(row: Row) -> str | dict[str, float] | None:
    """Return the level that a row states."""
    level = row.fields.get("level")
    if isinstance(level, dict) and all(isinstance(weight, int | float) for weight in level.values()):
        return level
    return None if level is None else row.value("level", "a name, or an object of weights", str)


def _sampling(row: Row) -> dict[str, Any] | None:
    """Return the sampling that a row states; null is not stated, except ``stop``, which then is empty."""
    if row.fields.get("sampling") is None:
        return None
    fields = row.inside("sampling")
    sampling = {name: value for name, value in fields.fields.items() if value is not None or name == "stop"}
    for name in ("temperature", "top_p", "max_new_tokens"):
        if name in sampling and (isinstance(sampling[name], bool) or not isinstance(sampling[name], int | float)):
            raise fields.error(f"is {kind_of(sampling[name])}", field=name, expected="a number")
    if "stop" in sampling:
        stop = sampling["stop"] or []
        sampling["stop"] = [stop] if isinstance(stop, str) else stop
        if not isinstance(stop, list | str) or not all(isinstance(text, str) for text in stop):
            raise fields.error(f"is {json.dumps(stop)}", field="stop", expected="a string or a list of strings")
    return sampling


def _stated_by_all(field: str, rows: Sequence[Row], read: Callable[[Row], T]) -> T:
    """Return what all rows state for a field; ``None`` where they state nothing."""
    first = read(rows[0])
    for row in rows:
        if (stated := read(row)) != first:
            raise row.error(
                f"is {json.dumps(stated)}",
                field=field,
                expected=f"the same in all rows of a system: {json.dumps(first)} in {rows[0].origin}",
            )
    return first


def _number_replicates(completions: Sequence[SystemCompletion]) -> list[SystemCompletion]:
    """Return the completions; where two places share a seed, with a number for each place and seed as the seed."""
    pairs = sorted({(completion.place, completion.seed) for completion in completions})
    if len(pairs) == len({seed for _, seed in pairs}):
        return list(completions)
    numbers = {pair: number for number, pair in enumerate(pairs)}
    return [replace(completion, seed=numbers[completion.place, completion.seed]) for completion in completions]


def _problem(what: str, completions: Sequence[SystemCompletion]) -> list[Problem]:
    origins = [str(completion.origin) for completion in completions]
    return [Problem(what, len(origins), origins)] if origins else []
