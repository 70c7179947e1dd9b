"""What is trained on and what is held out, before any filter: the source's splits, or a part of the training rows."""

from __future__ import annotations

import hashlib

from meetlm.config.errors import DataError
from meetlm.data.example import PreferenceExample, Read
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples


def read_splits(settings: DataSettings) -> tuple[Read[PreferenceExample], Read[PreferenceExample]]:
    """Return the rows to train on and the rows to evaluate on.

    With ``settings.holdout`` the latter are all rows of so many prompts of the training split: those with the smallest
    hashes, so that they come from everywhere in it and are the same whatever else is set. Rows that state another split
    then count as read beside those trained on, once.

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
            f"the training rows have {len(groups)} prompts, so none would be left to train on",
            file=rows[0].origin.file,
            field="data.holdout",
            expected=f"less than {len(groups)}",
        )
    held = set(groups[: settings.holdout])
    trained = [example for example in rows if example.group not in held]
    return Read(trained, train.other_split_rows), Read([example for example in rows if example.group in held], [])


def _hash(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()
