"""Which completions an evaluation compares: files given by name, or what `meet generate` wrote into a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError, RunError
from meetlm.data.example import PreferenceExample, Text
from meetlm.data.settings import DataSettings
from meetlm.data.splits import read_held_out
from meetlm.evaluation.answers import Answers, prompt_id, read_answers
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
    data: str | None = None,
) -> list[Answers]:
    """Return the systems that words name.

    Args:
        words: ``PLACE``, ``NAME=PLACE`` or ``NAME=PLACE,PLACE``; a place is a run's folder or a file of completions.
            Several places are replicates.
        level: Of the completions to take from a run; its default where ``None``.
        sampling: Theirs, and that of files that state it.
        held_out: Ids of the prompts that a run's completions are of.
        data: The file that these come from, if not from the run; `meet generate` reads it.

    Raises:
        ConfigError: Two systems have one name, a place is neither, or a file states another sampling.
        RunError: A run has no such completions; the message has the command that writes them.
        DataError: A row cannot be used.
    """
    systems: list[Answers] = []
    for word in words:
        name, places = named_places(word)
        if name in [answers.system.name for answers in systems]:
            raise ConfigError(f"two systems are called {name!r}: name them, as in NAME={places[0]}")
        answers = read_answers(name, [_files(place, level, sampling, held_out, data) for place in places])
        _as_asked(answers, level, sampling)
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


def chosen_replies(settings: DataSettings) -> tuple[dict[str, str | None], list[Problem]]:
    """Return the preferred reply of each distinct held-out prompt by its id, in order, and the rows not taken.

    Raises:
        DataError: The data cannot be read.
    """
    chosen: dict[str, str | None] = {}
    again: list[PreferenceExample] = []
    for example in read_held_out(settings):
        name = prompt_id(example.prompt)
        if name in chosen:
            again.append(example)
        else:
            chosen[name] = _reply(example.chosen)
    repeated = Problem(
        "held-out rows of a prompt that an earlier row has; the first one's chosen reply counts",
        len(again),
        [str(example.origin) for example in again],
    )
    return chosen, [repeated] if again else []


def _reply(chosen: Text) -> str:
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
    place: Path, level: Level | None, sampling: Sampling, held_out: Container[str], data: str | None
) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise _no_place(place)
    if level is None and (place / MEET).is_file():
        level = read_meet(place, weights=False).default_level
    found: dict[Path, Any] = {}
    for file in sorted((place / COMPLETIONS).glob("*.jsonl")):
        answers = read_answers(place.name, [[file]])
        stated = answers.system.sampling or {}
        alike = all(stated.get(name) == value for name, value in sampling.model_dump().items())
        if alike and level in (None, answers.system.level) and any(prompt in held_out for prompt, _ in answers.by_cell):
            found[file] = answers.system.level
    if not found:
        given = "" if data is None else f" --data {shlex.quote(data)}"
        given += "" if level is None else f" --level {shlex.quote(_word(level))}"
        raise RunError(
            f"{place} has no completions of the held-out prompts at {'any level' if level is None else _word(level)}, "
            f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g} and at most {sampling.max_new_tokens} new "
            f"tokens. Write them: meet generate {shlex.quote(str(place))}{given} --temperature "
            f"{sampling.temperature:g} --top-p {sampling.top_p:g} --max-new-tokens {sampling.max_new_tokens}"
        )
    levels = {json.dumps(one, sort_keys=True) for one in found.values()}
    if len(levels) > 1:
        raise RunError(f"{place} has completions at the levels {', '.join(sorted(levels))}: choose one with --level")
    return list(found)


def _no_place(place: Path) -> ConfigError:
    what = "is a folder and no run" if place.is_dir() else "is neither a run's folder nor a file of completions"
    return ConfigError(f"{place} {what}")


def _word(level: Level) -> str:
    return level if isinstance(level, str) else ",".join(f"{name}={weight:g}" for name, weight in level.items())
