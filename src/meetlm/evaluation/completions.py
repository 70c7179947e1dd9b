"""Reads completions: JSON lines with ``prompt`` and ``completion``, written by ``meet generate`` or another program.

A field that is missing in a file is ``None``, and the report says so. A row that cannot be used is an error that
names it, or a :class:`Problem` where the other rows can still be compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meetlm.data.example import Origin, Prompt
from meetlm.data.messages import read_prompt
from meetlm.data.rows import Row, kind_of, read_file
from meetlm.evaluation.record import Problem, System


@dataclass(frozen=True, slots=True)
class SystemCompletion:
    """One completion of a system.

    Attributes:
        prompt: The prompt.
        text: The completion; may be empty.
        origin: File and line.
        source: Index of the system's source that the row is from.
        seed: The sampling seed in the row; 0 if it has none.
        run: The run in the row; ``None`` if it has none.
    """

    prompt: Prompt
    text: str
    origin: Origin
    source: int
    seed: int
    run: str | None


@dataclass(frozen=True, slots=True)
class SystemCompletions:
    """All completions of a system.

    Attributes:
        system: Where they come from.
        by_cell: Completions by prompt id and replicate: the index of the source, and the sampling seed.
        problems: Problems of some rows.
    """

    system: System
    by_cell: dict[tuple[str, tuple[int, int]], SystemCompletion]
    problems: list[Problem]


def read_completions(name: str, sources: Sequence[Sequence[Path]]) -> SystemCompletions:
    """Return the completions of a system.

    Args:
        name: Name of the system.
        sources: The files of each source, such as a run: JSON lines with ``prompt`` and ``completion``; ``seed`` (0),
            ``level``, ``sampling`` and ``run`` are optional. Several sources are replicates, as are several seeds.

    Raises:
        DataError: A row has no prompt or completion, a field is of the wrong type, or level or sampling differ from the
            first row's.
    """
    rows = [(source, row) for source, files in enumerate(sources) for file in files for row in read_file(file)]
    all_rows = [row for _, row in rows]
    level, sampling = _common_value("level", all_rows, _level), _common_value("sampling", all_rows, _sampling)
    by_cell: dict[tuple[str, tuple[int, int]], SystemCompletion] = {}
    repeated = []
    for source, row in rows:
        completion = _completion(row, source)
        first = by_cell.setdefault((completion.prompt.id, (source, completion.seed)), completion)
        is_copy = completion.origin.file != first.origin.file and completion.text == first.text
        if first is not completion and not is_copy:
            repeated.append(str(completion.origin))
    empty = [str(completion.origin) for completion in by_cell.values() if not completion.text.strip()]
    problems = [
        Problem(f"{name}: a prompt repeated under the same seed; its first completion counts", repeated),
        Problem(f"{name}: empty completions, compared like any other", empty),
    ]
    runs = dict.fromkeys(completion.run for completion in by_cell.values() if completion.run is not None)
    files = [str(file) for files in sources for file in files]
    system = System(name, files, ", ".join(runs) or None, level, sampling)
    return SystemCompletions(system, by_cell, [problem for problem in problems if problem.examples])


def _completion(row: Row, source: int) -> SystemCompletion:
    prompt = read_prompt(row, "prompt")
    if prompt.is_blank:
        raise row.error("is empty", field="prompt", expected="some text")
    seed = row.number("seed") if row.fields.get("seed") is not None else 0
    run = row.text("run") if row.fields.get("run") is not None else None
    return SystemCompletion(prompt, row.text("completion"), row.origin, source, seed, run)


def _level(row: Row) -> str | dict[str, float] | None:
    """Return the level in a row."""
    level = row.fields.get("level")
    if isinstance(level, dict) and all(isinstance(weight, int | float) for weight in level.values()):
        return level
    return None if level is None else row.value("level", "a name, or an object of weights", str)


def _sampling(row: Row) -> dict[str, Any] | None:
    """Return the sampling settings in a row; null counts as missing, except for ``stop``, which is then empty."""
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


def _common_value(field: str, rows: Sequence[Row], read: Callable[[Row], Any]) -> Any:
    """Return the value of a field in all rows; ``None`` if it is missing."""
    first = read(rows[0])
    for row in rows:
        if (value := read(row)) != first:
            raise row.error(
                f"is {json.dumps(value)}",
                field=field,
                expected=f"the same in all rows of a system: {json.dumps(first)} in {rows[0].origin}",
            )
    return first
