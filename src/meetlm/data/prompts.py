"""Prompts to generate for: a file of preference pairs, one row a prompt, or rows with a prompt alone."""

from __future__ import annotations

from pathlib import Path

from meetlm.config.errors import DataError
from meetlm.data.example import Text, Turn
from meetlm.data.rows import Row, read_file
from meetlm.data.sources import SOURCES


def read_prompts(file: Path, source: str) -> list[Text]:
    """Return the distinct prompts of a file, in order.

    Args:
        file: Rows of the format ``source``, or rows with ``prompt`` (text or messages) and no ``chosen``.
        source: Name of a data source.

    Raises:
        DataError: A row is neither.
    """
    seen: dict[Text, None] = {}
    for row in read_file(file):
        alone = "prompt" in row.fields and "chosen" not in row.fields
        seen.setdefault(_prompt(row) if alone else SOURCES[source].parse(row).prompt)
    return list(seen)


def _prompt(row: Row) -> Text:
    value = row.fields["prompt"]
    if isinstance(value, str):
        return value
    turns = []
    for turn in value if isinstance(value, list) else [None]:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise DataError(
                "is no prompt",
                file=row.origin.file,
                line=row.origin.line,
                field="prompt",
                expected="a string, or a list of messages with 'role' and 'content'",
            )
        turns.append(Turn(turn["role"], turn["content"]))
    return tuple(turns)
