"""Completions of a run as files of JSON lines, which `meet evaluate` reads.

The name of a file contains level, sampling and seed, so that commands can select files by them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from meetlm.config.files import write_atomic
from meetlm.config.journal import Journal
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.world import World
from meetlm.data.example import Origin, Prompt
from meetlm.data.prompts import HeldOutPrompt, distinct, read_prompts, within
from meetlm.data.settings import DataSettings
from meetlm.evaluation.record import Problem
from meetlm.generation.settings import Sampling
from meetlm.policy.fingerprint import sha256_of
from meetlm.run.aligned import Aligned, PromptLike, load
from meetlm.run.completion_record import CompletionRecord
from meetlm.run.folder import read_data_settings, read_meet
from meetlm.run.levels import NO_GUIDANCE, Guidance, Level, level_text

COMPLETIONS = "completions"
"""Folder of completions within the folder of a run."""
UNFINISHED = ".unfinished"
"""Suffix of the journal that stores completions until all are generated."""


def write_completions(
    run: Path,
    data: DataSettings | None,
    level: Level | None,
    sampling: Sampling,
    *,
    guidance: Guidance = NO_GUIDANCE,
    seed: int = 0,
    limit: int | None = None,
    best_of: int = 1,
    attribute: str | None = None,
    batch_size: int = 32,
    out: Path | None = None,
    reporter: Reporter = SILENT,
) -> tuple[Path, int]:
    """Write a completion of every distinct prompt, one JSON object per line; an interrupted call continues.

    Args:
        run: Folder of a finished run.
        data: Data whose evaluation split has the prompts; ``None`` = the run's training data set, without prompts that
            exceed its ``max_length``.
        level: As in :meth:`Aligned.generate`.
        sampling: How to sample.
        guidance: As in :meth:`Aligned.iter_completions`.
        seed: Seed of sampling.
        limit: Use only the first ``limit`` prompts; ``None`` = all.
        best_of: As in :meth:`Aligned.generate`.
        attribute: As in :meth:`Aligned.generate`.
        batch_size: Prompts per batch.
        out: File to write; by default :func:`completions_file`.
        reporter: Shows progress, and which rows are skipped and why.

    Returns:
        The file and the number of its lines.

    Raises:
        RunError: ``run`` is not a finished run.
        DataError: The prompts cannot be read.
        ConfigError: As in :meth:`Aligned.generate`.
    """
    resolved = read_meet(run).resolve(level, guidance.strength, reporter=reporter)  # before the model is loaded
    aligned = load(run)
    rows = held_out_rows(aligned, run, data, reporter)
    prompts = aligned.repeat([row.prompt for row in rows[:limit]], best_of, sampling)
    path = out or completions_file(
        run,
        resolved,
        sampling,
        seed,
        guidance=guidance,
        data=data,
        limit=limit,
        best_of=best_of,
        attribute=attribute,
    )
    unfinished = path.with_name(path.name + UNFINISHED)
    completions = complete_resumably(
        aligned,
        prompts,
        resolved,
        sampling,
        unfinished,
        guidance=guidance,
        seed=seed,
        batch_size=batch_size,
        reporter=reporter,
    )
    lines = []
    for index, score in aligned.pick_best(completions, best_of, attribute, reporter=reporter):
        chosen = completions[index].to_dict()
        lines.append(chosen if score is None else {**chosen, "best_of": best_of, "score": score})
    if World.current().is_main:
        write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        unfinished.unlink(missing_ok=True)
    World.current().wait()
    return path, len(lines)


def complete_resumably(
    aligned: Aligned,
    prompts: Sequence[PromptLike],
    level: Level,
    sampling: Sampling,
    unfinished: Path,
    *,
    guidance: Guidance = NO_GUIDANCE,
    seed: int,
    batch_size: int = 32,
    reporter: Reporter = SILENT,
) -> list[CompletionRecord]:
    """Return a completion of each prompt; completions of an interrupted call are read from its journal.

    Args:
        aligned: A run or a base model.
        prompts: The prompts, each as often as it is sampled.
        level: As in :meth:`Aligned.generate`.
        sampling: How to sample.
        unfinished: The journal; the caller removes it when the results are written.
        guidance: As in :meth:`Aligned.iter_completions`.
        seed: Seed of sampling.
        batch_size: Prompts per batch.
        reporter: Shows the progress.
    """
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    control, meet = sha256_of(aligned.policy.control), aligned.meet
    texts = [prompt.to_json() if isinstance(prompt, Prompt) else prompt for prompt in prompts]
    inputs = [meet.run, meet.lm_sha256, control, meet.format.to_dict(), level, sampling.model_dump(), seed, texts]
    inputs += [asdict(guidance)] if guidance.strength else []
    header = {"of": hashlib.sha256(json.dumps(inputs, ensure_ascii=False).encode()).hexdigest()}
    world = World.current()
    with Journal(unfinished, header) if world.is_main else nullcontext() as journal:
        entries = world.from_main(lambda: journal.entries if journal else [])
        completions = {entry["number"]: CompletionRecord(**entry["line"]) for entry in entries}
        if completions:
            reporter.message(f"resuming after {len(completions)} completions written by an interrupted call")
        results = aligned.iter_completions(
            prompts,
            level,
            sampling,
            guidance=guidance,
            seed=seed,
            batch_size=batch_size,
            skip=set(completions),
            reporter=reporter,
        )
        for number, completion in results:
            completions[number] = completion
            if journal:
                journal.append({"number": number, "line": completion.to_dict()})
    return [completions[number] for number in range(len(prompts))]


def held_out_rows(
    aligned: Aligned, run: Path, data: DataSettings | None, reporter: Reporter = SILENT
) -> list[HeldOutPrompt]:
    """Return the distinct held-out prompts; report rows that are left out, and why.

    Args:
        aligned: The run, loaded.
        run: Its folder.
        data: Data whose evaluation split has the prompts; ``None`` = the run's training data set, without prompts
            that exceed its ``max_length``.
        reporter: Shows the messages.

    Raises:
        DataError: The prompts cannot be read.
    """
    settings = data or read_data_settings(run)
    rows = distinct_rows(settings, reporter)
    if data is None:

        def length(prompt: Prompt) -> int:
            return len(aligned.format.prompt_ids(prompt))

        rows, too_long = within(rows, length, settings.max_length, settings.limit_eval)
        _report_left_out(
            f"prompts of more than {settings.max_length} tokens", [row.origin for row in too_long], reporter
        )
    return rows


def distinct_rows(settings: DataSettings, reporter: Reporter = SILENT) -> list[HeldOutPrompt]:
    """Return the first held-out row of each prompt; report rows that are left out, and why.

    Raises:
        DataError: The prompts cannot be read.
    """
    held_out = read_prompts(settings)
    first_rows, repeated = distinct(held_out.prompts)
    _report_left_out("rows without a prompt", held_out.without_prompt, reporter)
    _report_left_out("rows of another split", held_out.other_split_rows, reporter)
    _report_left_out("rows that repeat the prompt of an earlier row", [row.origin for row in repeated], reporter)
    return list(first_rows.values())


def _report_left_out(name: str, origins: Sequence[Origin], reporter: Reporter) -> None:
    if origins:
        reporter.message(str(Problem(f"{name}; left out", [str(origin) for origin in origins])))


def completions_file(
    run: Path,
    level: str | dict[str, float],
    sampling: Sampling,
    seed: int,
    *,
    guidance: Guidance = NO_GUIDANCE,
    data: DataSettings | None = None,
    limit: int | None = None,
    best_of: int = 1,
    attribute: str | None = None,
) -> Path:
    """Return the default file of a run's completions; its name contains all settings that distinguish them."""
    best = "" if best_of == 1 else f"-best{best_of}" + (f"-by-{attribute}" if attribute else "")
    name = f"{_stem(level, sampling, guidance)}{best}-seed{seed}"
    name += "" if data is None else f"-of-{_data_name(data)}"
    name += "" if limit is None else f"-first{limit}"
    return run / COMPLETIONS / f"{safe_name(name)}.jsonl"


def completions_files(run: Path, level: str | dict[str, float], sampling: Sampling) -> list[Path]:
    """Return the files of a run's completions at a level and sampling, of any seed and data."""
    return sorted((run / COMPLETIONS).glob(f"{_stem(level, sampling)}-seed*.jsonl"))


def _stem(level: str | dict[str, float], sampling: Sampling, guidance: Guidance = NO_GUIDANCE) -> str:
    """Return the beginning of a file's name; mixes with equal weights get equal names."""
    if not isinstance(level, str):
        level = "_".join(f"{name}{weight:g}" for name, weight in sorted(level.items(), key=lambda part: -part[1]))
    if guidance.strength:
        level += f"-guidance{guidance.strength:g}"
        level += "" if guidance.against is None else f"-against-{level_text(guidance.against)}"
    return safe_name(f"{level}-t{sampling.temperature:g}-p{sampling.top_p:g}-n{sampling.max_new_tokens}")


def safe_name(name: str) -> str:
    """Return a name with ``_`` for characters that file names should not have."""
    return re.sub(r"[^\w.\-]", "_", name)


def _data_name(data: DataSettings) -> str:
    """Return the name of a file, or of a data set with its subset and split, and a hash of how it is read."""
    path = Path(data.path or "").expanduser()
    if data.eval_file is not None:
        file = Path(data.eval_file).expanduser()
        path = (path / file if path.is_dir() else file).resolve()
        parts = [path.stem]
    else:
        path = path.resolve() if path.exists() else path
        parts = [part for part in (path.name, data.subset, data.eval_split) if part]
    identity = f"{path}\n{data.source}"
    if data.columns or data.as_chat:
        identity += f"\n{sorted(data.columns.items())}\n{data.as_chat}"
    return "-".join([*parts, hashlib.sha256(identity.encode()).hexdigest()[:6]])
