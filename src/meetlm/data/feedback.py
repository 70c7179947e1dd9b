"""Replies with feedback: labels, scores, named levels, attributes, or lists from best to worst.

A row has one reply in ``completion`` or several in ``completions``, and one kind of feedback on them:

* ``label``: true or false, as in TRL's unpaired format;
* ``score``: a number, more is better;
* ``level``: the name of a level;
* ``attributes``: an object of names with numbers, true or false, or names of levels; ``data.attributes`` builds it from
  columns;
* none of these columns: ``completions`` are ordered from best to worst.

With ``completions``, the columns are ``labels``, ``scores`` and ``levels``, each with a list. A value may be missing
(null, or empty text): a reply trains only the levels that it has feedback on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from meetlm.data.example import Completion, Example, Feedback, Prompt, Rank, Turn, as_reply
from meetlm.data.messages import read_prompt
from meetlm.data.pairs import after_prompt, read_conversation, refuse_unused, single_turn, with_system
from meetlm.data.rows import Row, kind_of

COLUMNS = ("label", "score", "level", "attributes")
"""Columns with feedback on one reply."""

LIST_COLUMNS = {"labels": "label", "scores": "score", "levels": "level", "attributes": "attributes"}
"""Columns with lists of feedback on several replies, and the column for one reply that each corresponds to."""


def parse(row: Row) -> Example:
    """Turn one row into an example, grouped by its prompt.

    Raises:
        DataError: A field is missing or malformed, the row has no feedback or several kinds of it, or a column that
            looks like a part of the prompt would not be used.
    """
    if {"chosen", "rejected"} <= row.fields.keys():
        raise row.error("holds a pair", field="chosen", expected="--data.source pairs")
    several = "completions" in row.fields
    prompt = read_prompt(row, "prompt") if row.fields.get("prompt") is not None else read_conversation(row)
    if prompt is None:
        row.value("prompt", "text, or messages; --data.columns prompt=NAME uses another column", object)  # if missing
        raise row.error("is null", field="prompt", expected="text, or messages")
    if prompt.is_chat:
        prompt = Prompt(with_system(row, prompt.turns))
    rows = _split_replies(row) if several else [row]
    replies = [_reply(item, prompt) for item in rows]
    if any(prompt.is_chat != is_chat for _, is_chat in replies):
        prompt = Prompt(prompt.turns)
    feedback = [_feedback(item) for item in rows]
    if several and not LIST_COLUMNS.keys() & row.fields.keys():
        feedback = [(("", Rank(-index)),) for index in range(len(rows))]  # the first reply is the best
    elif not any(name in row.fields for name in (LIST_COLUMNS if several else COLUMNS)):
        names = ", ".join(sorted(map(str, row.fields)))
        expected = f"a column label, score or level, or --data.attributes COLUMN,COLUMN; columns of this row: {names}"
        raise row.error("has no feedback on the reply", expected=expected)
    turns = [turn for turn, _ in replies]
    refuse_unused(row, prompt, *turns)
    prompt_text = "" if prompt.is_chat else prompt.text().rstrip()
    repeats_prompt = len(prompt_text.split()) > 1 and any(turn.content.startswith(prompt_text) for turn in turns)
    remarks = ("repeated_in_one",) if repeats_prompt else ()
    completions = tuple(Completion(turn, values, row.origin) for turn, values in zip(turns, feedback, strict=True))
    return Example(prompt, completions, prompt.group, row.origin, remarks=remarks)


def _split_replies(row: Row) -> list[Row]:
    """Return one row for each reply in ``completions``, with the feedback on it."""
    replies = row.items("completions")
    if not replies:
        raise row.error("is an empty list", field="completions", expected="at least one reply")
    items: list[dict[str, Any]] = [{"completion": reply} for reply in replies]
    for column, name in LIST_COLUMNS.items():
        if column != name and name in row.fields:
            expected = f"a list, {column!r}, with a value per reply in 'completions'"
            raise row.error("is one value for several replies", field=name, expected=expected)
        if column not in row.fields:
            continue
        values = row.items(column)
        if len(values) != len(replies):
            expected = f"{len(replies)}, one per reply in 'completions'"
            raise row.error(f"holds {len(values)} values", field=column, expected=expected)
        for item, value in zip(items, values, strict=True):
            item[name] = value
    return [row.wrap(f"completions[{index}]", item) for index, item in enumerate(items)]


def _reply(row: Row, prompt: Prompt) -> tuple[Turn, bool]:
    """Return the reply of a row, and whether it is written as messages."""
    row.value("completion", "the reply: text, or messages; --data.columns completion=NAME uses another column", object)
    reply = read_prompt(row, "completion")
    if not reply.is_chat:
        return as_reply(reply.text()), False
    return single_turn(row, "completion", after_prompt(row, "completion", prompt.turns, reply.turns)), True


def _feedback(row: Row) -> Feedback:
    """Return the feedback of a row on its reply; empty if all values are missing."""
    columns = [name for name in COLUMNS if name in row.fields]
    if len(columns) > 1:
        expected = (
            f"one of them; --data.columns {columns[1]}= ignores a column, --data.attributes selects the columns to use"
        )
        raise row.error(f"has several kinds of feedback: {', '.join(columns)}", expected=expected)
    if not columns:
        return ()
    (name,) = columns
    if name == "attributes":
        nested = row.inside(name)
        values = {str(key): parse_value(nested, str(key)) for key in nested.fields}
    else:
        values = {"": PARSERS[name](row, name) if not _is_missing(row.fields[name]) else None}
    return tuple((attribute, value) for attribute, value in values.items() if value is not None)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def parse_label(row: Row, field: str) -> str:
    """Return the level of a label: good for true, bad for false."""
    value = row.fields[field]
    text = value.strip().lower() if isinstance(value, str) else str(value).lower() if isinstance(value, int) else ""
    if text not in _LABELS:
        raise row.error(f"is {_describe(value)}", field=field, expected="true or false (or 1 or 0)")
    return _LABELS[text]


def parse_score(row: Row, field: str) -> float:
    """Return a finite number; a number in text is converted."""
    value = row.fields[field]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise row.error(f"is {_describe(value)}", field=field, expected="a finite number")
    return number


def parse_level_name(row: Row, field: str) -> str:
    """Return the name of a level."""
    value = row.fields[field]
    if not isinstance(value, str):
        expected = "the name of a level; --data.columns score=NAME reads a column of numbers"
        raise row.error(f"is {_describe(value)}", field=field, expected=expected)
    name = value.strip()
    if not set(name).isdisjoint("=,") or _is_number(name):
        expected = "the name of a level: not a number, and without '=' or ','"
        raise row.error(f"is {name!r}", field=field, expected=expected)
    return name


def parse_value(row: Row, field: str) -> str | float | None:
    """Return the value of an attribute: a number, ``false`` or ``true``, or the name of a level."""
    value = row.fields[field]
    if _is_missing(value):
        return None
    if isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false")):
        return str(value).strip().lower()
    if isinstance(value, str) and not _is_number(value):
        return parse_level_name(row, field)
    return parse_score(row, field)


PARSERS: Mapping[str, Callable[[Row, str], str | float]] = {
    "label": parse_label,
    "score": parse_score,
    "level": parse_level_name,
}
_LABELS = {"true": "good", "1": "good", "false": "bad", "0": "bad"}


def _is_number(text: str) -> bool:
    """Whether text would be read as a number, finite or not."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _describe(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float) else kind_of(value)
