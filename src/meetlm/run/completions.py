"""A run's completions as JSONL: the only thing evaluation reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError
from meetlm.config.files import write_atomic
from meetlm.config.journal import Journal
from meetlm.data.example import Text
from meetlm.data.prompts import HeldOutPrompt, distinct, read_prompts, within
from meetlm.data.settings import DataSettings
from meetlm.evaluation.record import Problem
from meetlm.generation.sampling import Sampling
from meetlm.policy.fingerprint import sha256_of
from meetlm.run.aligned import Level, Prompt, check_level, load
from meetlm.run.folder import read_data_settings, read_meet

COMPLETIONS = "completions"
"""The folder in a run."""
UNFINISHED = ".unfinished"
"""Ending of the journal that holds completions until all of them are there."""


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
    data: DataSettings | None,
    level: Level | None,
    sampling: Sampling,
    *,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 32,
    out: Path | None = None,
    on_done: Callable[[int], Any] | None = None,
    on_total: Callable[[int], Any] | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> tuple[Path, int]:
    """Generate for every distinct prompt and write one record a line; a call that was stopped goes on.

    Args:
        run: A finished run.
        data: Whose evaluation split has the prompts; the run's own where ``None``, and then those alone that are
            within its length.
        level: As in :meth:`Aligned.generate`.
        sampling: How.
        seed: Of the random streams.
        limit: The first so many prompts.
        batch_size: Rows at once.
        out: The file; by default :func:`completions_file`.
        on_done: Is told the number of completions done, batch by batch.
        on_total: Is told their number in all, once the prompts have been read.
        say: Takes lines for people: which rows are left out, and why.

    Returns:
        The file and the number of its lines.

    Raises:
        RunError: ``run`` is no finished run.
        DataError: The prompts cannot be read.
        ConfigError: As in :meth:`Aligned.generate`.
    """
    check_level(read_meet(run).levels, level)  # before the model is loaded
    settings = data or read_data_settings(run)
    held = read_prompts(settings)
    aligned = load(run)
    firsts, again = distinct(held.prompts)
    rows = list(firsts.values())
    longer: list[HeldOutPrompt] = []
    if data is None:

        def length(prompt: Text) -> int:
            return len(aligned.format.prompt_ids(prompt))

        rows, longer = within(rows, length, settings.max_length, settings.limit_eval)
    for what, places in (
        ("rows without a prompt", held.without),
        ("rows that state another split", held.elsewhere),
        ("rows of a prompt that an earlier row has", [row.origin for row in again]),
        (f"prompts of more than {settings.max_length} tokens", [row.origin for row in longer]),
    ):
        if places:
            left = Problem(f"{what}; left out", len(places), [str(place) for place in places])
            say(f"{left.count} x {left.what}: {left.shown}")
    asked = [_prompt(row.prompt) for row in rows[:limit]]
    if on_total:
        on_total(len(asked))
    path = out or completions_file(run, level or aligned.default_level, sampling, seed, data=data, limit=limit)
    path.parent.mkdir(parents=True, exist_ok=True)
    meet, control = aligned.meet, sha256_of(aligned.policy.control)
    decides = [meet.run, meet.lm_sha256, control, meet.format.to_dict(), level, sampling.model_dump(), seed, asked]
    header = {"of": hashlib.sha256(json.dumps(decides, ensure_ascii=False).encode()).hexdigest()}
    unfinished = path.with_name(path.name + UNFINISHED)
    with Journal(unfinished, header) as journal:
        written = {entry["number"]: entry["line"] for entry in journal.entries}
        if written:
            say(f"resuming after {len(written)} completions written by an interrupted call")
            if on_done:
                on_done(len(written))
        todo = aligned.stream(
            asked, level, sampling, seed=seed, batch_size=batch_size, skip=set(written), on_done=on_done
        )
        for number, completion in todo:
            written[number] = completion.to_dict()
            journal.append({"number": number, "line": written[number]})
    lines = (json.dumps(written[number], ensure_ascii=False) + "\n" for number in range(len(asked)))
    write_atomic(path, "".join(lines))
    unfinished.unlink(missing_ok=True)
    return path, len(asked)


def _prompt(text: Text) -> Prompt:
    return text if isinstance(text, str) else [{"role": t.role, "content": t.content} for t in text]


def completions_file(
    run: Path,
    level: Level,
    sampling: Sampling,
    seed: int,
    *,
    data: DataSettings | None = None,
    limit: int | None = None,
) -> Path:
    """Return where a run's completions go, unless another place is named: all that makes them others is in the name."""
    named = level if isinstance(level, str) else "_".join(f"{k}{v:g}" for k, v in level.items())
    text = f"{named}-t{sampling.temperature:g}-p{sampling.top_p:g}-n{sampling.max_new_tokens}-seed{seed}"
    text += "" if data is None else f"-of-{_name_of(data)}"
    text += "" if limit is None else f"-first{limit}"
    name = re.sub(r"[^\w.\-]", "_", text)
    return run / COMPLETIONS / f"{name}.jsonl"


def _name_of(data: DataSettings) -> str:
    """Return the name of a file, or of a data set with its part and split, and a hash of where it is and its format."""
    place = Path(data.path or "").expanduser()
    if data.eval_file is not None:
        file = Path(data.eval_file).expanduser()
        place = (place / file if place.is_dir() else file).resolve()
        words = [place.stem]
    else:
        place = place.resolve() if place.exists() else place
        words = [word for word in (place.name, data.subset, data.eval_split) if word]
    return "-".join([*words, hashlib.sha256(f"{place}\n{data.source}".encode()).hexdigest()[:6]])
