"""Which completions an evaluation compares: files given by name, or what `meet generate` wrote into a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError, DataError, RunError
from meetlm.data.example import Origin, Text, fingerprint, prompt_id
from meetlm.data.pairs import text_or_turns
from meetlm.data.prompts import distinct, read_prompts
from meetlm.data.rows import Row
from meetlm.data.settings import DataSettings
from meetlm.evaluation.answers import Answers, read_answers
from meetlm.evaluation.measures import NO_CHOSEN
from meetlm.evaluation.record import Problem
from meetlm.generation.sampling import Sampling
from meetlm.run.aligned import Level
from meetlm.run.completions import COMPLETIONS
from meetlm.run.folder import CONFIG, MEET, read_data_settings, read_meet


def read_systems(
    words: Sequence[str],
    level: Level | None,
    sampling: Sampling,
    held_out: Container[str],
    *,
    data: Sequence[str] = (),
) -> list[Answers]:
    """Return the systems that words name.

    Args:
        words: ``PLACE``, ``NAME=PLACE`` or ``NAME=PLACE,PLACE``; a place is a run's folder or a file of completions.
            Several places are replicates.
        level: Of the completions to take from a run; its default where ``None``.
        sampling: Theirs, and that of files that state it.
        held_out: Ids of the prompts that a run's completions are of.
        data: The options by which `meet generate` finds these prompts; none where they are the run's own.

    Raises:
        ConfigError: Two systems have one name, a place is neither, or a file states another sampling.
        RunError: A run has no such completions; the message has the command that writes them.
        DataError: A row cannot be used, in a file given by name or one that would be compared.
    """
    systems: list[Answers] = []
    for word in words:
        name, places = named_places(word)
        if name in [answers.system.name for answers in systems]:
            raise ConfigError(f"two systems are called {name!r}: name them, as in NAME={places[0]}")
        found = [_files(place, level, sampling, held_out, data) for place in places]
        answers = read_answers(name, [files for files, _ in found])
        _as_asked(answers, level, sampling)
        broken = [str(error) for _, errors in found for error in errors]
        if broken:
            what = f"{name}: files that cannot be read; left out, since no readable row of theirs is one to compare"
            answers.problems.append(Problem(what, len(broken), broken, of_rows=False))
        systems.append(answers)
    return systems


def named_places(word: str) -> tuple[str, list[Path]]:
    """Return the name and the places of ``PLACE``, ``NAME=PLACE`` or ``NAME=PLACE,PLACE``.

    What exists is a place, whatever signs are in it.
    """
    name, equals, rest = word.partition("=")
    if not equals or Path(word).exists():
        name, rest = "", word
    paths = [Path(rest)] if Path(rest).exists() else [Path(place) for place in rest.split(",")]
    return name or (paths[0].stem if paths[0].is_file() else paths[0].resolve().name), paths


def data_of(words: Sequence[str]) -> DataSettings:
    """Return the data settings of the first run among the systems that words name.

    Raises:
        ConfigError: None of them is a run, or a place before the first one is nowhere.
    """
    for word in words:
        for place in named_places(word)[1]:
            if (place / CONFIG).is_file():
                return read_data_settings(place)
            if not place.is_file():
                raise _no_place(place)
    raise ConfigError("none of the systems is a run, so the held-out prompts are not known: --data")


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
        "rows beside the held-out ones that state another split; left out": held.elsewhere,
        "held-out rows of a prompt that an earlier row has; the first chosen reply counts": [
            row.origin for row in again
        ],
        NO_CHOSEN: [row.origin for row in firsts.values() if row.chosen is None],
    }
    return HeldOutReplies(
        {name: _reply(row.chosen) for name, row in firsts.items()},
        [Problem(what, len(rows), [str(row) for row in rows]) for what, rows in kinds.items() if rows],
        fingerprint((row.prompt, row.chosen) for row in firsts.values()),
    )


def _reply(chosen: Text | None) -> str | None:
    if chosen is None:
        return None
    return (chosen if isinstance(chosen, str) else "\n\n".join(turn.content for turn in chosen)).strip()


def _as_asked(answers: Answers, level: Level | None, sampling: Sampling) -> None:
    """Refuse sampling that is stated and not what was asked for; name another level.

    Raises:
        ConfigError: It is another one.
    """
    system = answers.system
    for name, wanted in sampling.model_dump().items():
        stated = (system.sampling or {}).get(name, wanted)
        if stated != wanted:
            option = name.replace("_", "-")
            raise ConfigError(
                f"{system.name} was sampled with {name} {stated:g}, where {wanted:g} is asked for "
                f"({system.files[0]}): --{option} {stated:g} compares completions sampled so"
            )
    if level is not None and system.level not in (None, level):
        what = f"{system.name} states the level {_word(system.level)} where {_word(level)} is asked for; taken as it is"
        answers.problems.append(Problem(what, len(answers.by_cell), system.files, of_rows=False))


def _files(
    place: Path, level: Level | None, sampling: Sampling, held_out: Container[str], data: Sequence[str]
) -> tuple[list[Path], list[DataError]]:
    """Return the files of a place to compare, and what is wrong with others that cannot be read."""
    if place.is_file():
        return [place], []
    if not place.is_dir():
        raise _no_place(place)
    if level is None and (place / MEET).is_file():
        level = read_meet(place, weights=False).default_level
    asked = sampling.model_dump()
    found: dict[Path, Any] = {}
    broken: list[DataError] = []
    for file in sorted((place / COMPLETIONS).glob("*.jsonl")):
        try:
            answers = read_answers(place.name, [[file]])
        except DataError as error:
            if any(_is_asked(row, level, asked, held_out) for row in _readable(file)):
                raise
            broken.append(error)
            continue
        stated = answers.system.sampling or {}
        alike = all(stated.get(name) == value for name, value in asked.items())
        if alike and level in (None, answers.system.level) and any(prompt in held_out for prompt, _ in answers.by_cell):
            found[file] = answers.system.level
    if not found:
        given = "".join(f" {shlex.quote(word)}" for word in data)
        given += "" if level is None else f" --level {shlex.quote(_word(level))}"
        unread = f" (files that cannot be read: {'; '.join(map(str, broken))})" if broken else ""
        raise RunError(
            f"{place} has no completions of the held-out prompts at {'any level' if level is None else _word(level)}, "
            f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g} and at most {sampling.max_new_tokens} new "
            f"tokens{unread}. Write them: meet generate {shlex.quote(str(place))}{given} --temperature "
            f"{sampling.temperature:g} --top-p {sampling.top_p:g} --max-new-tokens {sampling.max_new_tokens}"
        )
    levels = {json.dumps(one, sort_keys=True) for one in found.values()}
    if len(levels) > 1:
        raise RunError(f"{place} has completions at the levels {', '.join(sorted(levels))}: choose one with --level")
    return list(found), broken


def _readable(file: Path) -> Iterator[Row]:
    """Yield the rows of a file that has lines which are none."""
    lines = file.read_bytes().splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield Row(value, Origin(str(file), number))


def _is_asked(row: Row, level: Level | None, sampling: dict[str, Any], held_out: Container[str]) -> bool:
    """Whether a row is, by what it states, one of those to compare."""
    stated = row.fields.get("sampling")
    if not isinstance(stated, dict) or any(stated.get(name) != value for name, value in sampling.items()):
        return False
    try:
        prompt = text_or_turns(row, "prompt")
    except DataError:
        return False
    return level in (None, row.fields.get("level")) and prompt_id(prompt) in held_out


def _no_place(place: Path) -> ConfigError:
    what = "is a folder and no run" if place.is_dir() else "is neither a run's folder nor a file of completions"
    return ConfigError(f"{place} {what}")


def _word(level: Level) -> str:
    return level if isinstance(level, str) else ",".join(f"{name}={weight:g}" for name, weight in level.items())
