"""Which completions an evaluation compares: files given by name, or what `meet generate` wrote into a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError, RunError
from meetlm.data.example import PreferenceExample, Text
from meetlm.data.rows import read_file
from meetlm.data.settings import DataSettings
from meetlm.data.splits import read_held_out
from meetlm.evaluation.answers import Answers, prompt_id, read_answers
from meetlm.evaluation.record import Problem
from meetlm.generation.sampling import Sampling
from meetlm.run.aligned import Level
from meetlm.run.completions import COMPLETIONS
from meetlm.run.folder import CONFIG, MEET, read_data_settings, read_meet

SHOWN = 5


def read_systems(words: Sequence[str], level: Level | None, sampling: Sampling) -> list[Answers]:
    """Return the systems that words name.

    Args:
        words: ``PLACE``, ``NAME=PLACE`` or ``NAME=PLACE,PLACE``; a place is a run's folder or a file of completions.
            Several places are replicates.
        level: Of the completions to take from a run; its default where ``None``.
        sampling: Theirs.

    Raises:
        ConfigError: Two systems have one name, or a place is neither.
        RunError: A run has no such completions; the message has the command that writes them.
        DataError: A row cannot be used.
    """
    systems: list[Answers] = []
    for word in words:
        name, _, places = word.rpartition("=")
        paths = [Path(place) for place in places.split(",")]
        name = name or (paths[0].resolve().name if paths[0].is_dir() else paths[0].stem)
        if name in [answers.system.name for answers in systems]:
            raise ConfigError(f"two systems are called {name!r}: name them, as in NAME={places}")
        files = [file for path in paths for file in _files(path, level, sampling)]
        systems.append(read_answers(name, files))
    return systems


def data_of(words: Sequence[str]) -> DataSettings:
    """Return the data settings of the first run among the systems that words name.

    Raises:
        ConfigError: None of them is a run.
    """
    for word in words:
        for place in word.rpartition("=")[2].split(","):
            if (Path(place) / CONFIG).is_file():
                return read_data_settings(Path(place))
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
        [str(example.origin) for example in again[:SHOWN]],
    )
    return chosen, [repeated] if again else []


def _reply(chosen: Text) -> str:
    return (chosen if isinstance(chosen, str) else "\n\n".join(turn.content for turn in chosen)).strip()


def _files(path: Path, level: Level | None, sampling: Sampling) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"{path} is neither a run's folder nor a file of completions")
    if level is None and (path / MEET).is_file():
        level = read_meet(path).default_level
    wanted = sampling.model_dump()
    found: dict[Path, Any] = {}
    for file in sorted((path / COMPLETIONS).glob("*.jsonl")):
        first = next(read_file(file)).fields
        stated = first.get("sampling") or {}
        if all(stated.get(name) == value for name, value in wanted.items()) and level in (None, first.get("level")):
            found[file] = first.get("level")
    if not found:
        named = "" if level is None else f" --level {_word(level)}"
        raise RunError(
            f"{path} has no completions at level {_word(level) if level else 'of any name'}, temperature "
            f"{sampling.temperature:g}, top-p {sampling.top_p:g} and at most {sampling.max_new_tokens} new tokens. "
            f"Write them: meet generate {path}{named} --temperature {sampling.temperature:g} "
            f"--top-p {sampling.top_p:g} --max-new-tokens {sampling.max_new_tokens}"
        )
    levels = {json.dumps(one) for one in found.values()}
    if len(levels) > 1:
        raise RunError(f"{path} has completions at the levels {', '.join(sorted(levels))}: choose one with --level")
    return list(found)


def _word(level: Level) -> str:
    return level if isinstance(level, str) else ",".join(f"{name}={weight:g}" for name, weight in level.items())
