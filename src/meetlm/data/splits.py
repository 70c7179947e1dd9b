"""The rows to train on and the held-out rows, before any filter."""

from __future__ import annotations

import hashlib

from meetlm.config.errors import DataError
from meetlm.data.example import Example, UnfilteredRows
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples


def read_splits(settings: DataSettings) -> tuple[UnfilteredRows[Example], UnfilteredRows[Example]]:
    """Return the rows to train on and the rows to evaluate on.

    With ``settings.holdout`` = N, the rows to evaluate on are all rows of N prompts of the training split: those
    with the smallest hashes, so that they are spread over the file and depend on no other setting. Rows of other splits
    are then listed with the training rows only.

    Raises:
        DataError: Data cannot be read, or nothing would be left to train on.
    """
    train = read_examples(settings, "train")
    if settings.holdout is None:
        return train, read_examples(settings, "eval")
    rows = train.rows
    groups = sorted({example.group for example in rows}, key=_hash)
    if settings.holdout >= len(groups):
        raise DataError(
            f"--data.holdout {settings.holdout} leaves no row to train on",
            file=rows[0].origin.file,
            expected=f"a number below the number of distinct prompts ({len(groups)})",
        )
    held_out = set(groups[: settings.holdout])
    training_rows = [example for example in rows if example.group not in held_out]
    return UnfilteredRows(training_rows, train.other_split_rows), UnfilteredRows(
        [example for example in rows if example.group in held_out], []
    )


def _hash(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()
