"""From what a user points at (a file, a folder, a hub name) to data settings. Knows no tokenizer."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from meetlm.config.errors import DataError
from meetlm.data.hh import HUMAN
from meetlm.data.rows import Row, find_rows
from meetlm.data.settings import DataSettings
from meetlm.data.sources import SOURCES

TEST_SPLITS = ("test", "validation")


def locate(
    place: str,
    *,
    source: str | None = None,
    subset: str | None = None,
    split: str = "train",
    test: str | None = None,
    max_length: int = 512,
) -> tuple[DataSettings, str | None]:
    """Return settings for a file, folder or hub name, and by what its format was told (``None`` where given).

    Args:
        place: A file, a folder in the hub's layout, or a hub name.
        source: The format, if known; else it is guessed from the first row.
        subset: Folder inside the data set.
        split: Which split to look at.
        test: A file of held-out rows.
        max_length: In tokens.

    Raises:
        DataError: Nothing is there, or the first row cannot be read.
        ConfigError: ``source`` is unknown.
    """
    if source is not None:
        SOURCES[source]  # an unknown name is told before anything is read
    path = Path(place).expanduser()
    if path.is_dir() and test is not None:
        test = str(Path(test).expanduser().absolute())  # settings take relative files from the folder
    settings = DataSettings(
        source=source or "pairs",
        path=None if path.is_file() else place,
        train_file=str(path) if path.is_file() else None,
        subset=subset,
        train_split=split,
        eval_file=test,
        max_length=max_length,
    )
    if source is not None:
        return settings, None
    (row,) = islice(find_rows(settings, "train").rows, 1)
    guess, why = guess_source(row)
    return settings.model_copy(update={"source": guess}), why


def guess_source(row: Row) -> tuple[str, str]:
    """Return the format that a row seems to have, and by what it was told."""
    sides = [row.fields.get(name) for name in ("chosen", "rejected")]
    if all(isinstance(side, str) and side.startswith(HUMAN) for side in sides):
        return "hh", f"chosen and rejected begin with {HUMAN!r}"
    if "info" in row.fields and "summaries" in row.fields:
        return "summarize", "it has the fields info and summaries"
    return "pairs", "prompt, chosen and rejected, or the last two"


def with_test(settings: DataSettings) -> DataSettings | None:
    """Return ``settings`` whose held-out rows can be read, or ``None`` where there are none.

    An explicit file and a part of the training rows count as they are; else the split ``eval_split`` or
    ``validation`` is looked for.

    Raises:
        DataError: The rows are there and the first of them cannot be read.
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
