"""The formats of preference data (``--data.source``), by name, and functions that read data in them.

A format is a pure function from a row to an example; ``rows`` and ``locations`` read files, folders and the hub. To
add a format, write its module and register it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from meetlm.config.errors import DataError
from meetlm.config.registry import Registry
from meetlm.data import feedback, hh, pairs, summarize
from meetlm.data.example import Example, Prompt, Turn, UnfilteredRows
from meetlm.data.locations import find_rows
from meetlm.data.rows import Row
from meetlm.data.settings import DataSettings

T = TypeVar("T")


def _always(row: Row, split: str) -> bool:
    return True


def _unchanged(prompt: Prompt) -> Prompt:
    return prompt


def _turns(prompt: Prompt) -> tuple[Turn, ...]:
    return prompt.turns


@dataclass(frozen=True)
class Source:
    """A format of preference data.

    Attributes:
        parse: Turns one row into an example, or raises a ``DataError`` that names file and line.
        fields: Fields of a row with replies; a row without any of them has only a prompt.
        stop: Strings at which a generated completion ends, besides the end-of-text token.
        in_split: Whether a row is part of the named split, for formats whose rows name their split.
        format_prompt: Formats a prompt that a user types in the same way as the prompts of the data.
        to_turns: Turns a text prompt into a conversation, for ``data.as_chat``.
        task: What a response is: a reply in a ``dialogue`` or a ``summary``; ``None`` if it is unknown.
    """

    parse: Callable[[Row], Example]
    fields: tuple[str, ...] = ("chosen", "rejected")
    stop: tuple[str, ...] = ()
    in_split: Callable[[Row, str], bool] = _always
    format_prompt: Callable[[Prompt], Prompt] = _unchanged
    to_turns: Callable[[Prompt], tuple[Turn, ...]] = _turns
    task: Literal["dialogue", "summary"] | None = None


SOURCES: Registry[Source] = Registry("--data.source")
SOURCES.register("hh")(
    Source(hh.parse, stop=hh.STOP, format_prompt=hh.as_transcript, to_turns=hh.to_turns, task="dialogue")
)
SOURCES.register("summarize")(
    Source(summarize.parse, fields=("info", "summaries"), in_split=summarize.in_split, task="summary")
)
SOURCES.register("pairs")(Source(pairs.parse))
SOURCES.register("feedback")(Source(feedback.parse))


def read_rows(
    settings: DataSettings,
    split: Literal["train", "eval"],
    parse: Callable[[Row, Source], T],
    *,
    every_split: bool = False,
) -> UnfilteredRows[T]:
    """Read every row of a split.

    Args:
        settings: Location and format of the data.
        split: The split to read.
        parse: Called with each row and its format.
        every_split: Whether to read rows of other splits too.

    Raises:
        ConfigError: ``settings.source`` is not a known format.
        DataError: The data cannot be found or read, ``parse`` refuses a row, or no row is part of the split.
    """
    source = SOURCES[settings.source]
    split_rows = find_rows(settings, split)
    result: UnfilteredRows[T] = UnfilteredRows([], [])
    for row in split_rows.rows:
        if every_split or source.in_split(row, split_rows.split):
            result.rows.append(parse(row, source))
        else:
            result.other_split_rows.append(row.origin)
    if not result.rows:
        raise DataError(f"no row is part of the split {split_rows.split!r}", file=split_rows.file)
    return result


def read_examples(settings: DataSettings, split: Literal["train", "eval"]) -> UnfilteredRows[Example]:
    """Read every example of a split.

    Raises:
        MeetError: As in :func:`read_rows`.
    """

    def parse(row: Row, source: Source) -> Example:
        example = source.parse(row)
        return to_chat(example, source) if settings.as_chat else example

    return read_rows(settings, split, parse)


def to_chat(example: Example, source: Source) -> Example:
    """Return an example with its text prompt as a conversation, and its replies without surrounding white space."""
    if example.prompt.is_chat:
        return example
    other = example.other_prompt
    return replace(
        example,
        prompt=Prompt(source.to_turns(example.prompt)),
        other_prompt=None if other is None else Prompt(source.to_turns(other)),
        completions=tuple(replace(c, reply=c.reply.stripped) for c in example.completions),
    )
