"""Complete data settings by looking at the data: the format of the rows, and the held-out split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError, DataError, nearest
from meetlm.config.overrides import KeyPath
from meetlm.config.yaml_files import validate
from meetlm.data.hh import HUMAN, is_transcript
from meetlm.data.locations import find_rows
from meetlm.data.rows import Row
from meetlm.data.settings import DataSettings

HELD_OUT_KEYS = ("path", "eval_file", "source", "subset", "eval_split", "columns", "as_chat")
"""Settings of data that locate held-out prompts."""
TEST_SPLITS = ("test", "validation")


def held_out_settings(data: Mapping[str, Any], locations: Mapping[KeyPath, str]) -> DataSettings:
    """Return settings whose evaluation split is the held-out prompts; if ``path`` is a file, all its rows are held out.

    Without ``source`` the first row determines the format.

    Args:
        data: Settings of the data, not validated.
        locations: The option that set each value, for messages.

    Raises:
        ConfigError: A setting is wrong or would have no effect.
        DataError: There are no data, or the first row cannot be read.
    """
    for name in data:
        if name not in DataSettings.model_fields:
            raise ConfigError(f"--data.{name}: unknown key {name!r}{nearest(name, HELD_OUT_KEYS)}")
        if name not in HELD_OUT_KEYS:
            raise ConfigError(f"--data.{name} has no effect on held-out prompts")
    if data.get("path") is None and data.get("eval_file") is None:
        raise ConfigError(f"--data.{next(iter(data))} requires --data.path (a file, folder or hub name with prompts)")
    path = data.get("path")
    if path is not None and Path(str(path)).expanduser().is_file():
        for name in ("eval_file", "subset", "eval_split"):
            if data.get(name) is not None:
                raise ConfigError(f"--data.{name} has no effect: --data.path {path} is a file, whose rows are all read")
        data = {**data, "path": None, "eval_file": str(path)}
    settings = validate(DataSettings, {"source": "pairs", **data}, locations, "data")
    if "source" not in data:
        source, _ = guess_source(next(iter(find_rows(settings, "eval").rows)))
        settings = settings.model_copy(update={"source": source})
    return settings


def held_out_args(data: DataSettings | None) -> list[str]:
    """Return settings of held-out data as command-line arguments; none if ``data`` is ``None``."""
    args = []
    for name, value in data.model_dump(include=set(HELD_OUT_KEYS), exclude_defaults=True).items() if data else ():
        if isinstance(value, Mapping):
            value = ",".join(f"{column}={source}" for column, source in value.items())
        args += [f"--data.{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return args


def guess_source(row: Row) -> tuple[str, str]:
    """Return the format of a row, and the reason as text for messages."""
    replies = [row.fields.get(name) for name in ("chosen", "rejected")]
    if all(isinstance(reply, str) and is_transcript(reply[:20]) for reply in replies):
        return "hh", f"chosen and rejected begin with {HUMAN.strip()!r}"
    if "info" in row.fields and "summaries" in row.fields:
        return "summarize", "it has the columns info and summaries"
    replies = [name for name in ("completion", "completions") if name in row.fields]
    if replies and row.fields.get("chosen") is None:
        return "feedback", f"it has the column {replies[0]}"
    return "pairs", "its columns match no other format"


def with_test(settings: DataSettings) -> DataSettings | None:
    """Return ``settings`` with held-out rows, or ``None`` if there are none.

    Without ``eval_file`` and ``holdout`` the split ``eval_split`` is used, or else ``test`` or ``validation``.

    Raises:
        DataError: There are held-out rows, but the first of them cannot be read.
    """
    if settings.eval_file is not None or settings.holdout is not None:
        return settings
    if settings.path is None or Path(settings.path).expanduser().is_file():
        return None
    for name in dict.fromkeys((settings.eval_split, *TEST_SPLITS)):
        candidate = settings.model_copy(update={"eval_split": name})
        if name == settings.train_split:
            continue
        try:
            next(iter(find_rows(candidate, "eval").rows))
        except DataError as error:
            if error.line is not None:
                raise
            continue
        return candidate
    return None
