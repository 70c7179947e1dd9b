"""Prompts and replies in a row: plain text, or messages in the formats of OpenAI, ShareGPT and TRL.

No part of a message is dropped: fields beside ``role`` and ``content`` are passed to the chat template, and a message
that cannot be represented is an error that names line and field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from meetlm.data.example import Prompt, Turn
from meetlm.data.rows import Row, kind_of

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
"""Role by the name, in lower case, that a data set uses for it."""

EXPECTED = "text, or a list of messages with role and content"
_JSON_START = re.compile(r"\s*\[?\s*\{")
_MESSAGES_START = re.compile(_JSON_START.pattern + r"""\s*["'](role|content|from|value)["']\s*:""")
"""Start of text that is meant as JSON messages, even if it was written with Python's ``str`` by mistake."""


def read_prompt(row: Row, field: str) -> Prompt:
    """Return the text or messages in a field; messages may be JSON text.

    Raises:
        DataError: The field is missing, is neither text nor messages, or a message cannot be represented.
    """
    value = row.fields.get(field)
    if isinstance(value, str):
        text = row.text(field)
        value = _json_messages(row, field, text)
        if value is None:
            return Prompt(text)
    if _is_message(value):
        value = [value]
    if not isinstance(value, list):
        if field not in row.fields:
            row.value(field, EXPECTED, object)  # raises the error for a missing field
        raise row.error(f"is {kind_of(value)}", field=field, expected=EXPECTED)
    if not value:
        raise row.error("is an empty list", field=field, expected="at least one message")
    return Prompt(tuple(_turn(row, f"{field}[{index}]", message) for index, message in enumerate(value)))


def _json_messages(row: Row, field: str, text: str) -> Any:
    """Return the messages in JSON text; ``None`` for plain text."""
    if not _JSON_START.match(text):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not _MESSAGES_START.match(text):
            return None
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        expected = "messages as JSON text (json.dumps, not Python's str)"
        raise row.error(f"bad JSON: {reason}", field=field, expected=expected) from None
    messages = value if isinstance(value, list) else [value]
    return value if all(map(_is_message, messages)) else None


def _is_message(value: object) -> bool:
    """Whether a value is an object with a role, in the format of OpenAI or of ShareGPT."""
    return isinstance(value, Mapping) and not {"role", "from"}.isdisjoint(value)


def _turn(row: Row, name: str, message: object) -> Turn:
    if not isinstance(message, Mapping):
        raise row.error(f"is {kind_of(message)}", field=name, expected="an object with role and content")
    fields = {key: value for key, value in message.items() if value is not None}
    if "role" not in fields and {"from", "value"} <= fields.keys():  # ShareGPT
        fields = {"role": fields.pop("from"), "content": fields.pop("value"), **fields}
    # A message that lacks a field is wrapped as it is, so that the error lists the fields that it has.
    nested = row.wrap(name, fields if fields.keys() >= {"role", "content"} else message)
    role = nested.text("role")
    if role.lower() not in ROLES:
        expected = f"one of {', '.join(ROLES)}"
        raise nested.error(f"is {role!r}", field="role", expected=expected)
    extra = {
        key: value for key, value in fields.items() if key not in ("role", "content") and value not in ("", [], {})
    }
    content = "" if fields.get("content") is None and "tool_calls" in extra else _content(nested)
    return Turn.from_message({"role": ROLES[role.lower()], "content": content, **extra})


def _content(message: Row) -> str:
    """Return the text of a message, which may be a list of parts ``{"type": "text", "text": …}``."""
    parts = message.fields.get("content")
    if not isinstance(parts, list):
        return message.text("content")
    texts = []
    for index, part in enumerate(parts):
        name = f"content[{index}]"
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = repr(part["type"]) if isinstance(part, Mapping) and "type" in part else kind_of(part)
            raise message.error(f"is {kind}", field=name, expected="parts of type text: only text can be trained")
        texts.append(message.wrap(name, part).text("text"))
    return "".join(texts)
