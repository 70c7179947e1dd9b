"""The systems that an evaluation compares: files of completions, or runs with completions of `meet generate`."""

from __future__ import annotations

import shlex
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from meetlm.config.errors import ConfigError, RunError
from meetlm.data.example import fingerprint
from meetlm.data.prompts import distinct, read_prompts
from meetlm.data.settings import DataSettings
from meetlm.diagnostics.locate import held_out_args
from meetlm.evaluation.completions import SystemCompletions, read_completions
from meetlm.evaluation.measures import NO_CHOSEN
from meetlm.evaluation.record import Problem
from meetlm.generation.settings import Sampling
from meetlm.run.completions import completions_files
from meetlm.run.folder import CONFIG, MEET, read_data_settings, read_meet
from meetlm.run.levels import Level, level_text

NamedPaths = tuple[str, Sequence[Path]]
"""The name of a system, and its paths: folders of runs, or files of completions."""


def read_systems(
    systems: Sequence[NamedPaths],
    level: Level | None,
    sampling: Sampling,
    held_out: Container[str],
    *,
    data: DataSettings | None = None,
) -> list[SystemCompletions]:
    """Return the completions of systems.

    Args:
        systems: Names and paths; several paths of a system are replicates.
        level: Level of the completions to select from a run; ``None`` for the run's default level.
        sampling: Sampling of the completions to select from a run; files sampled with other settings are refused.
        held_out: Ids of the held-out prompts to compare.
        data: The data with these prompts, for messages; ``None`` for the run's own held-out data.

    Raises:
        ConfigError: Two systems have the same name, a path is neither a run nor a file, or a file was
            sampled with other settings.
        RunError: A run has no such completions; the message contains the command that generates them.
        DataError: A row to compare cannot be used.
    """
    result: list[SystemCompletions] = []
    for name, paths in systems:
        if name in [completions.system.name for completions in result]:
            raise ConfigError(f"two systems have the name {name!r}: give each a name of its own with NAME={paths[0]}")
        completions = read_completions(
            name, [_completion_files(path, level, sampling, held_out, data) for path in paths]
        )
        _check_level_and_sampling(completions, level, sampling)
        result.append(completions)
    return result


def named_paths(arg: str) -> tuple[str, list[Path]]:
    """Return the name and the paths of ``PATH``, ``NAME=PATH`` or ``NAME=PATH,PATH``.

    The name of an existing file or folder is never split at ``=`` or ``,``.
    """
    name, equals, paths_text = arg.partition("=")
    if not equals or Path(arg).exists():
        name, paths_text = "", arg
    paths = [Path(paths_text)] if Path(paths_text).exists() else [Path(part) for part in paths_text.split(",")]
    return name or (paths[0].stem if paths[0].is_file() else paths[0].resolve().name), paths


def data_of_runs(systems: Sequence[NamedPaths]) -> DataSettings:
    """Return the data settings of the first run among the paths of the systems.

    Raises:
        ConfigError: No path is a run, or a path before the first run does not exist.
    """
    for path in [path for _, paths in systems for path in paths]:
        if (path / CONFIG).is_file():
            return read_data_settings(path)
        if not path.is_file():
            raise _not_a_system(path)
    raise ConfigError("the systems are files without data settings: pass the held-out prompts as --data.path")


@dataclass(frozen=True, slots=True)
class HeldOutReplies:
    """The held-out prompts and their preferred replies.

    Attributes:
        chosen: The preferred reply of each distinct prompt by its id, in order; ``None`` if its rows have none.
        problems: Rows that were left out, and prompts without a preferred reply.
        sha256: Hash of these prompts and replies.
    """

    chosen: dict[str, str | None]
    problems: list[Problem]
    sha256: str


def chosen_replies(settings: DataSettings) -> HeldOutReplies:
    """Return the distinct held-out prompts and their preferred replies.

    Raises:
        DataError: The data cannot be read, or no row has a prompt.
    """
    held_out = read_prompts(settings)
    first_rows, repeated = distinct(held_out.prompts)
    rows_by_problem = {
        "held-out rows without a prompt; left out": held_out.without_prompt,
        "rows of another split in the held-out file; left out": held_out.other_split_rows,
        "held-out rows that repeat the prompt of an earlier row; the chosen reply of the first row counts": [
            row.origin for row in repeated
        ],
        NO_CHOSEN: [row.origin for row in first_rows.values() if row.chosen is None],
    }
    return HeldOutReplies(
        {prompt: None if row.chosen is None else row.chosen.content.strip() for prompt, row in first_rows.items()},
        [Problem(name, [str(row) for row in rows]) for name, rows in rows_by_problem.items() if rows],
        fingerprint((row.prompt, row.chosen) for row in first_rows.values()),
    )


def _check_level_and_sampling(completions: SystemCompletions, level: Level | None, sampling: Sampling) -> None:
    """Raise an error if the completions state other sampling; record a problem if they state another level.

    Raises:
        ConfigError: The sampling differs.
    """
    system = completions.system
    for name, expected in sampling.model_dump().items():
        value = (system.sampling or {}).get(name, expected)
        if value != expected:
            option = name.replace("_", "-")
            raise ConfigError(
                f"{system.name} was sampled with {name} {value:g}, not {expected:g} ({system.files[0]}): pass "
                f"--{option} {value:g} to compare these completions"
            )
    # A file states its level as a name or as weights: a number cannot be compared with it.
    if isinstance(level, int | float) or level is None or system.level is None:
        return
    if level_text(system.level) != level_text(level):
        problem = (
            f"{system.name} has the level {level_text(system.level)}, but --level is {level_text(level)}; used anyway"
        )
        completions.problems.append(Problem(problem, system.files))


def _completion_files(
    path: Path, level: Level | None, sampling: Sampling, held_out: Container[str], data: DataSettings | None
) -> list[Path]:
    """Return ``path`` if it is a file, else the run's files with completions of held-out prompts at this level."""
    if path.is_file():
        return [path]
    if not (path / CONFIG).is_file() and not (path / MEET).is_file():
        raise _not_a_system(path)
    meet = read_meet(path, weights=False)
    resolved = meet.resolve(level)
    files = [
        file
        for file in completions_files(path, resolved, sampling)
        if any(prompt in held_out for prompt, _ in read_completions(path.name, [[file]]).by_cell)
    ]
    if files:
        return files
    args = ["meet", "generate", str(path), *held_out_args(data), "--level", level_text(resolved)]
    args += ["--temperature", f"{sampling.temperature:g}", "--top-p", f"{sampling.top_p:g}"]
    args += ["--max-new-tokens", str(sampling.max_new_tokens)]
    raise RunError(
        f"{path} has no completions of the held-out prompts at level {level_text(resolved)}, temperature "
        f"{sampling.temperature:g}, top-p {sampling.top_p:g} and at most {sampling.max_new_tokens} new tokens. "
        f"Write them: {shlex.join(args)}"
    )


def _not_a_system(path: Path) -> ConfigError:
    problem = "is a folder, but not a run" if path.is_dir() else "is neither a run's folder nor a file of completions"
    return ConfigError(f"{path} {problem}")
