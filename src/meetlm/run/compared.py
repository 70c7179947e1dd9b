"""The completions that an evaluation compares: files, or what `meet generate` has written into a run's folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError, RunError
from meetlm.data.example import fingerprint
from meetlm.data.prompts import distinct, read_prompts
from meetlm.data.settings import DataSettings
from meetlm.evaluation.completions import SystemCompletions, read_completions
from meetlm.evaluation.measures import NO_CHOSEN
from meetlm.evaluation.record import Problem
from meetlm.generation.sampling import Sampling
from meetlm.run.completions import COMPLETIONS
from meetlm.run.folder import CONFIG, MEET, read_data_settings, read_meet
from meetlm.run.levels import Level, level_text, resolve_level


def read_systems(
    named: Sequence[tuple[str, Sequence[Path]]],
    level: Level | None,
    sampling: Sampling,
    held_out: Container[str],
    *,
    data: Sequence[str] = (),
) -> list[SystemCompletions]:
    """Return the completions of systems.

    Args:
        named: Names and places; a place is a run's folder or a file of completions, several places are replicates.
        level: Level of the completions to use of a run; its default level where ``None``.
        sampling: Sampling of the completions to use of a run, and of files that state it.
        held_out: Ids of the prompts to compare.
        data: The arguments by which `meet generate` finds these prompts; none where they are the run's own.

    Raises:
        ConfigError: Two systems have one name, a place is neither a run nor a file, or a file states other sampling.
        RunError: A run has no such completions; the message has the command that writes them.
        DataError: A row to compare cannot be used.
    """
    systems: list[SystemCompletions] = []
    for name, places in named:
        if name in [answers.system.name for answers in systems]:
            raise ConfigError(f"two systems are called {name!r}: name them, as in NAME={places[0]}")
        files_by_place = [_files(place, level, sampling, held_out, data) for place in places]
        answers = read_completions(name, [files for files, _ in files_by_place])
        _check_stated(answers, level, sampling)
        unreadable = [file for _, files in files_by_place for file in files]
        if unreadable:
            what = f"{name}: files of completions whose first row cannot be read; left out"
            answers.problems.append(Problem(what, len(unreadable), unreadable, of_rows=False))
        systems.append(answers)
    return systems


def named_places(arg: str) -> tuple[str, list[Path]]:
    """Return the name and the places of ``PLACE``, ``NAME=PLACE`` or ``NAME=PLACE,PLACE``.

    An existing path is a place, whatever characters it contains.
    """
    name, equals, rest = arg.partition("=")
    if not equals or Path(arg).exists():
        name, rest = "", arg
    paths = [Path(rest)] if Path(rest).exists() else [Path(place) for place in rest.split(",")]
    return name or (paths[0].stem if paths[0].is_file() else paths[0].resolve().name), paths


def data_of(named: Sequence[tuple[str, Sequence[Path]]]) -> DataSettings:
    """Return the data settings of the first run among systems.

    Raises:
        ConfigError: None of them is a run, or a place before the first run does not exist.
    """
    for _, places in named:
        for place in places:
            if (place / CONFIG).is_file():
                return read_data_settings(place)
            if not place.is_file():
                raise _not_a_system(place)
    raise ConfigError("no system is a run, whose held-out prompts would be used: pass the prompts as --data.path")


@dataclass(frozen=True, slots=True)
class HeldOutReplies:
    """The held-out data as an evaluation needs them.

    Attributes:
        chosen: The preferred reply of each distinct prompt by its id, in order; ``None`` where no row of it has one.
        problems: Rows that were not taken, or that lack something.
        sha256: Of these prompts and replies.
    """

    chosen: dict[str, str | None]
    problems: list[Problem]
    sha256: str


def chosen_replies(settings: DataSettings) -> HeldOutReplies:
    """Return the distinct held-out prompts and their preferred replies.

    Raises:
        DataError: The data cannot be read, or no row has a prompt.
    """
    held = read_prompts(settings)
    firsts, again = distinct(held.prompts)
    kinds = {
        "held-out rows without a prompt; left out": held.without,
        "rows beside the held-out ones that name another split; left out": held.other_split_rows,
        "held-out rows of a prompt that an earlier row has; the first chosen reply counts": [
            row.origin for row in again
        ],
        NO_CHOSEN: [row.origin for row in firsts.values() if row.chosen is None],
    }
    return HeldOutReplies(
        {name: None if row.chosen is None else row.chosen.content.strip() for name, row in firsts.items()},
        [Problem(what, len(rows), [str(row) for row in rows]) for what, rows in kinds.items() if rows],
        fingerprint((row.prompt, row.chosen) for row in firsts.values()),
    )


def _check_stated(answers: SystemCompletions, level: Level | None, sampling: Sampling) -> None:
    """Refuse completions that state other sampling than ``sampling``; report another level.

    Raises:
        ConfigError: They state other sampling.
    """
    system = answers.system
    for name, wanted in sampling.model_dump().items():
        stated = (system.sampling or {}).get(name, wanted)
        if stated != wanted:
            option = name.replace("_", "-")
            raise ConfigError(
                f"{system.name} was sampled with {name} {stated:g}, not {wanted:g} ({system.files[0]}): pass "
                f"--{option} {stated:g} to compare completions sampled so"
            )
    if isinstance(level, int | float) or level is None or system.level is None:  # a number is a level of runs only
        return
    if system.level != level:
        what = (
            f"{system.name} states the level {level_text(system.level)}, --level is {level_text(level)}; used as it is"
        )
        answers.problems.append(Problem(what, len(answers.by_cell), system.files, of_rows=False))


def _files(
    place: Path, level: Level | None, sampling: Sampling, held_out: Container[str], data: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Return the files of a place to compare, and the files of a run whose first row cannot be read.

    All rows of a file that `meet generate` has written are of one level, sampling and seed, so the first row decides
    whether it is one to compare.
    """
    if place.is_file():
        return [place], []
    if not place.is_dir():
        raise _not_a_system(place)
    if (place / MEET).is_file():
        meet = read_meet(place, weights=False)
        level = resolve_level(meet.levels, meet.default_level if level is None else level)
    wanted = sampling.model_dump()
    levels: dict[Path, Any] = {}
    unreadable = []
    for file in sorted((place / COMPLETIONS).glob("*.jsonl")):
        first_row = _first_row(file)
        if first_row is None:
            unreadable.append(str(file))
            continue
        stated = first_row.get("sampling") or {}
        is_wanted = all(stated.get(name) == value for name, value in wanted.items())
        if is_wanted and level in (None, first_row.get("level")):
            by_cell = read_completions(place.name, [[file]]).by_cell
            if any(prompt in held_out for prompt, _ in by_cell):
                levels[file] = first_row.get("level")
    if not levels:
        raise _no_completions(place, level, sampling, data, unreadable)
    names = {json.dumps(file_level, sort_keys=True) for file_level in levels.values()}
    if len(names) > 1:
        raise RunError(f"{place} has completions at the levels {', '.join(sorted(names))}: choose one with --level")
    return list(levels), unreadable


def _first_row(file: Path) -> dict[str, Any] | None:
    """Return the first row of a file, or ``None`` where it is not a JSON object."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        try:
            row = json.loads(stream.readline())
        except ValueError:
            return None
    return row if isinstance(row, dict) else None


def _no_completions(
    place: Path, level: Level | None, sampling: Sampling, data: Sequence[str], unreadable: Sequence[str]
) -> RunError:
    """Return the error for a run without the completions, with the command that writes them."""
    args = ["meet", "generate", str(place), *data, *([] if level is None else ["--level", level_text(level)])]
    args += ["--temperature", f"{sampling.temperature:g}", "--top-p", f"{sampling.top_p:g}"]
    args += ["--max-new-tokens", str(sampling.max_new_tokens)]
    damaged = f" (files that cannot be read: {', '.join(unreadable)})" if unreadable else ""
    return RunError(
        f"{place} has no completions of the held-out prompts at {'any level' if level is None else level_text(level)}, "
        f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g} and at most {sampling.max_new_tokens} new "
        f"tokens{damaged}. Write them: {shlex.join(args)}"
    )


def _not_a_system(place: Path) -> ConfigError:
    problem = "is a folder, but not a run" if place.is_dir() else "is neither a run's folder nor a file of completions"
    return ConfigError(f"{place} {problem}")
