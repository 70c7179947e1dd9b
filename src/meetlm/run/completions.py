"""A run's completions as JSONL: the only thing evaluation reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError
from meetlm.data.encoding import pair_lengths
from meetlm.data.example import PreferenceExample, Text
from meetlm.data.filters import filter_eval
from meetlm.data.prompts import read_prompts
from meetlm.data.rows import read_file
from meetlm.data.settings import DataSettings
from meetlm.data.splits import read_held_out
from meetlm.diagnostics.locate import guess_source
from meetlm.generation.sampling import Sampling
from meetlm.run.aligned import Aligned, Level, Prompt, check_level, load
from meetlm.run.folder import read_data_settings, read_meet

COMPLETIONS = "completions"
"""The folder in a run."""


def parse_level(text: str | None) -> Level | None:
    """Return a level's name, or weights from ``good=1.5,bad=-0.5``.

    Raises:
        ConfigError: A weight is no number.
    """
    if text is None or "=" not in text:
        return text
    weights = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            raise ConfigError(f"--level {text!r}: expected a name, or weights such as good=1.5,bad=-0.5") from None
    return weights


def write_completions(
    run: Path,
    data: Path | None,
    level: Level | None,
    sampling: Sampling,
    *,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 32,
    out: Path | None = None,
    on_done: Callable[[int], Any] | None = None,
    on_total: Callable[[int], Any] | None = None,
) -> tuple[Path, int]:
    """Generate for every prompt and write one record a line.

    Args:
        run: A finished run.
        data: A file of prompts, or of preference pairs in any format, which its first row tells; the run's own
            evaluation split where ``None``: one a distinct prompt, within its length.
        level: As in :meth:`Aligned.generate`.
        sampling: How.
        seed: Of the random streams.
        limit: The first so many prompts.
        batch_size: Rows at once.
        out: The file; by default :func:`completions_file`.
        on_done: Is told the number of completions done, batch by batch.
        on_total: Is told their number in all, once the prompts have been read.

    Returns:
        The file and the number of its lines.

    Raises:
        RunError: ``run`` is no finished run.
        DataError: The prompts cannot be read.
        ConfigError: As in :meth:`Aligned.generate`.
    """
    check_level(read_meet(run).levels, level)  # before the model is loaded
    aligned = load(run)
    prompts = read_prompts(data, _source(data)) if data else _own_prompts(aligned, read_data_settings(run))
    asked = [_prompt(text) for text in prompts[:limit]]
    if on_total:
        on_total(len(asked))
    path = out or completions_file(run, level or aligned.default_level, sampling, seed, data=data, limit=limit)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = 0
    done = aligned.complete(asked, level, sampling, seed=seed, batch_size=batch_size, on_done=on_done)
    with partial.open("w", encoding="utf-8") as lines:
        for completion in done:
            lines.write(json.dumps(completion.to_dict(), ensure_ascii=False) + "\n")
            count += 1
    os.replace(partial, path)
    return path, count


def _source(file: Path) -> str:
    """Return the format of a file's rows, told by the first: that the run was trained on another does not matter."""
    source, _ = guess_source(next(read_file(file)))
    return source


def _own_prompts(aligned: Aligned, settings: DataSettings) -> list[Text]:
    def lengths(example: PreferenceExample) -> tuple[int, int, int]:
        return pair_lengths(aligned.format, example)

    kept, _ = filter_eval(
        read_held_out(settings), lengths, settings.max_length, need_pairs=False, limit=settings.limit_eval
    )
    return [example.prompt for example in kept]


def _prompt(text: Text) -> Prompt:
    return text if isinstance(text, str) else [{"role": t.role, "content": t.content} for t in text]


def completions_file(
    run: Path, level: Level, sampling: Sampling, seed: int, *, data: Path | None = None, limit: int | None = None
) -> Path:
    """Return where a run's completions go, unless another place is named: all that makes them others is in the name."""
    named = level if isinstance(level, str) else "_".join(f"{k}{v:g}" for k, v in level.items())
    text = f"{named}-t{sampling.temperature:g}-p{sampling.top_p:g}-n{sampling.max_new_tokens}-seed{seed}"
    text += "" if data is None else f"-of-{data.stem}"
    text += "" if limit is None else f"-first{limit}"
    name = re.sub(r"[^\w.\-]", "_", text)
    return run / COMPLETIONS / f"{name}.jsonl"
