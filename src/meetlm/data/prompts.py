"""Prompts to generate for: a file of preference pairs, one row a prompt, or rows with a prompt alone."""

from __future__ import annotations

from pathlib import Path

from meetlm.data.example import Text
from meetlm.data.pairs import text_or_turns
from meetlm.data.rows import read_file
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
        seen.setdefault(text_or_turns(row, "prompt") if alone else SOURCES[source].parse(row).prompt)
    return list(seen)
