"""Pairs in the columns ``prompt``, ``chosen`` and ``rejected``: TRL's formats, and those of ShareGPT-like files.

The prompt may be implicit: in rows with ``chosen`` and ``rejected`` alone, it is the beginning that both sides share.

* Plain text is split between words: the prompt ends before the last white space of the shared prefix, so replies
  start with their space and no word is cut in two (TRL cuts at the first differing character).
* Conversations are split at the first turn that differs; at least the last turn is the reply. If a reply would then
  contain a user or system turn, the two sides answer different prompts: each side is split before its closing
  assistant turns, and ``other_prompt`` is set, as for HH.

If the prompt is text and the replies are conversations, the prompt is the user's message; if the replies already
contain the conversation, the prompt column is a copy and is ignored. If the prompt ends with an assistant turn, the
reply continues that turn. ``system`` is the system message of a conversation. A column that looks like a part of the
prompt but would not be used is an error; other columns (ids, scores) are ignored.
"""

from __future__ import annotations

import re
from os.path import commonprefix

from meetlm.data.example import Example, Prompt, Turn, as_reply
from meetlm.data.messages import read_prompt
from meetlm.data.rows import Row

Turns = tuple[Turn, ...]

FEEDBACK_COLUMNS = ("label", "score", "level")
"""Columns with feedback on the only reply of a row."""

CHAT_COLUMNS = ("messages", "conversations")
"""Columns of the conversation that the replies answer, in rows without ``prompt``."""

PROMPT_PART_WORDS = re.compile(r"instructions?|inputs?|context|history|system|tools", re.IGNORECASE)
"""Words in the names of columns that may hold a part of the prompt, even in rows that have a ``prompt``."""

PROMPT_WORDS = re.compile(
    PROMPT_PART_WORDS.pattern
    + "|prompts?|questions?|query|conversations?|dialog(ue)?|messages|post|article|document|passage",
    re.IGNORECASE,
)
"""Words in the names of columns that may hold the prompt, in rows without ``prompt``."""

METADATA_WORDS = re.compile(r"id|index|hash|length|source|model|type|name|num|score|category", re.IGNORECASE)
"""Words in the names of columns that only describe a prompt."""


def parse(row: Row) -> Example:
    """Turn one row into an example, grouped by its prompt.

    Raises:
        DataError: A field is missing or malformed, the row holds one reply, text and conversation are mixed, a column
            that looks like a part of the prompt would not be used, or a conversation does not end with an assistant
            turn.
    """
    _refuse_other_formats(row)
    prompt = read_prompt(row, "prompt") if row.fields.get("prompt") is not None else None
    chosen, rejected = read_prompt(row, "chosen"), read_prompt(row, "rejected")
    if chosen.is_chat != rejected.is_chat:
        raise row.error(f"is {_kind(rejected)}", field="rejected", expected=f"{_kind(chosen)}, as in 'chosen'")
    is_reply_only = not chosen.is_chat or all(turn.role == "assistant" for turn in chosen.turns + rejected.turns)
    if prompt is None and is_reply_only:
        prompt = read_conversation(row)
    if chosen.is_chat or (prompt is not None and prompt.is_chat):
        sides = [side.turns if side.is_chat else (as_reply(side.text()),) for side in (chosen, rejected)]
        example = _chat_pair(row, prompt, *sides)
    else:
        example = _text_pair(row, prompt, chosen.text(), rejected.text())
    refuse_unused(row, example.prompt, *example.replies)
    return example


def _refuse_other_formats(row: Row) -> None:
    feedback = [name for name in FEEDBACK_COLUMNS if name in row.fields]
    has_side = bool({"chosen", "rejected"} & row.fields.keys())
    if "completion" in row.fields and feedback and not has_side:
        expected = "'chosen' and 'rejected'; or --data.source feedback, which reads replies with feedback"
        raise row.error(f"holds one reply, with a {feedback[0]}", expected=expected)
    if isinstance(row.fields.get("output"), list) and not has_side:
        expected = "the columns 'chosen' and 'rejected', and --data.columns prompt=instruction+input"
        raise row.error("is a list of replies, as in Alpaca's comparisons", field="output", expected=expected)


def read_conversation(row: Row) -> Prompt | None:
    """Return the conversation in ``messages`` or ``conversations``; ``None`` if the row has neither."""
    for name in CHAT_COLUMNS:
        if row.fields.get(name):
            prompt = read_prompt(row, name)
            if prompt.turns[-1].role == "assistant":
                expected = f"a user turn last; to continue the assistant turn, pass --data.columns prompt={name}"
                raise row.error("ends with a turn of 'assistant'", field=name, expected=expected)
            return prompt
    return None


def _text_pair(row: Row, prompt: Prompt | None, chosen: str, rejected: str) -> Example:
    """Return a pair of plain texts, without the prompt in the replies if both repeat it."""
    if prompt is None:
        end = _prompt_end(chosen, rejected)
        prompt, chosen, rejected = Prompt(chosen[:end]), chosen[end:], rejected[end:]
        return Example.of_pair(prompt, as_reply(chosen), as_reply(rejected), prompt.group, row.origin)
    question = prompt.text().rstrip()
    remarks: tuple[str, ...] = ()
    if len(question.split()) > 1:
        repeated = [side.startswith(question) for side in (chosen, rejected)]
        if all(repeated):
            chosen, rejected = chosen[len(question) :], rejected[len(question) :]
        remarks = ("repeated_in_both",) if all(repeated) else ("repeated_in_one",) if any(repeated) else ()
    sides = as_reply(chosen), as_reply(rejected)
    return Example.of_pair(prompt, *sides, prompt.group, row.origin, remarks=remarks)


def _chat_pair(row: Row, prompt: Prompt | None, chosen: Turns, rejected: Turns) -> Example:
    remarks: tuple[str, ...] = ()
    other: Turns | None = None
    has_question = any(turn.role == "user" for turn in chosen + rejected)
    if prompt is None or (has_question and not prompt.is_chat):
        chosen, rejected = _refuse_open_end(row, "chosen", chosen), _refuse_open_end(row, "rejected", rejected)
        turns, chosen, rejected, other = _split_turns(chosen, rejected)
        if prompt is not None and not prompt.is_blank and _squeeze(prompt.text()) not in _squeeze(Prompt(turns).text()):
            remarks = ("prompt_column_ignored",)
    else:
        turns = prompt.turns
        chosen, rejected = after_prompt(row, "chosen", turns, chosen), after_prompt(row, "rejected", turns, rejected)
    turns = with_system(row, turns)
    if not turns:
        names = ", ".join(sorted(map(str, row.fields)))
        expected = f"a prompt, since the replies contain no user message; columns of this row: {names}"
        raise row.error("is missing", field="prompt", expected=expected)
    other_prompt = None if other is None else Prompt(with_system(row, other))
    sides = single_turn(row, "chosen", chosen), single_turn(row, "rejected", rejected)
    return Example.of_pair(
        Prompt(turns), *sides, Prompt(turns).group, row.origin, other_prompt=other_prompt, remarks=remarks
    )


def with_system(row: Row, turns: Turns) -> Turns:
    """Return a conversation with the system message from the column ``system`` at its beginning."""
    if not isinstance(row.fields.get("system"), str) or not (text := row.text("system")).strip():
        return turns
    if not turns or turns[0].role != "system":
        return (Turn("system", text), *turns)
    if turns[0].content.strip() != text.strip():
        problem = "differs from the system message of the conversation"
        raise row.error(
            problem, field="system", expected="the same text, or --data.columns system= to ignore the column"
        )
    return turns


def single_turn(row: Row, field: str, turns: Turns) -> Turn:
    """Return the only turn of a reply; a reply of several turns is an error."""
    if len(turns) > 1:
        roles = ", ".join(turn.role for turn in turns)
        raise row.error(f"is a reply of {len(turns)} turns ({roles})", field=field, expected="one assistant message")
    return turns[0]


def refuse_unused(row: Row, prompt: Prompt, *replies: Turn) -> None:
    """Refuse a row with a column that looks like a part of the prompt and is not used.

    Args:
        row: The row.
        prompt: Its prompt.
        *replies: Its replies.

    Raises:
        DataError: Names the column, and the option that uses or ignores it.
    """
    is_explicit = bool(row.fields.get("prompt"))
    has_question = prompt.is_chat and any(turn.role == "user" for turn in prompt.turns)
    pattern = PROMPT_PART_WORDS if is_explicit or has_question else PROMPT_WORDS
    candidates = [name for name in row.fields if _may_hold_prompt(name, pattern)]
    if not candidates:
        return
    question = "".join(turn.content for turn in prompt.turns)
    used = [_squeeze(question + reply.content) for reply in (*replies, as_reply(""))]
    unused = [name for name in candidates if not any(_text_in(row.fields[name]) in text for text in used)]
    if not unused:
        return
    remedy = f"--data.columns {','.join(f'{name}=' for name in unused)} to ignore it"
    texts = [name for name in unused if isinstance(row.fields[name], str) and name != "system"]
    if not prompt.is_chat and (texts or unused == ["system"]):
        parts = [*(["system"] if "system" in unused else []), *(["prompt"] if is_explicit else []), *texts]
        remedy = f"--data.columns prompt={'+'.join(parts)} to use it, or {remedy}"
    names = ", ".join(sorted(map(str, row.fields)))
    role = "a part of the prompt" if is_explicit or has_question else "the prompt"
    problem = f"looks like {role} but would not be used; columns of this row: {names}; pass {remedy}"
    raise row.error(problem, field=(texts or unused)[0])


def _may_hold_prompt(name: str, pattern: re.Pattern[str]) -> bool:
    parts = re.findall("[A-Z]?[a-z]+|[A-Z]+", name)
    is_used = name in ("prompt", "chosen", "rejected")
    return not is_used and any(map(pattern.fullmatch, parts)) and not any(map(METADATA_WORDS.fullmatch, parts))


def _text_in(value: object) -> str:
    """Return all text in a value, without white space; for messages, the text of their contents."""
    if isinstance(value, dict):
        value = [value.get("content") or value.get("value") or list(value.values())]
    if isinstance(value, list):
        return "".join(map(_text_in, value))
    return _squeeze(value) if isinstance(value, str) else ""


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _prompt_end(chosen: str, rejected: str) -> int:
    """Return the last position in the shared prefix at which white space begins that separates words on both sides."""
    shared = commonprefix([chosen, rejected])
    end = len(shared)
    if end < len(chosen) and end < len(rejected):
        if shared[-1:].isspace():
            return len(shared.rstrip())
        if chosen[end].isspace() and rejected[end].isspace():
            return end
    words = shared.rsplit(None, 1)  # the last word may continue in one of the replies: it belongs to them
    return len(words[0]) if len(words) == 2 else 0


def _split_turns(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns, Turns | None]:
    limit = min(len(chosen), len(rejected)) - 1
    shared = next((index for index in range(limit) if chosen[index] != rejected[index]), limit)
    if all(turn.role not in ("user", "system") for turn in chosen[shared:] + rejected[shared:]):
        return chosen[:shared], chosen[shared:], rejected[shared:], None
    first, second = _reply_start(chosen), _reply_start(rejected)
    other = None if chosen[:first] == rejected[:second] else rejected[:second]
    return chosen[:first], chosen[first:], rejected[second:], other


def _reply_start(turns: Turns) -> int:
    """Return the index of the first closing assistant turn."""
    start = len(turns)
    while start and turns[start - 1].role == "assistant":
        start -= 1
    return start


def after_prompt(row: Row, field: str, prompt: Turns, turns: Turns) -> Turns:
    """Return a reply to an explicit prompt, without the prompt if the reply repeats it."""
    turns = _refuse_open_end(row, field, turns)
    *before, last = prompt
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    elif last.role == "assistant" and turns[:-1] == tuple(before) and turns[-1].content.startswith(last.content):
        turns = (as_reply(turns[-1].content[len(last.content) :]),)
    if not turns or any(turn.role in ("user", "system") for turn in turns):
        problem = "has user or system turns that are not in the prompt"
        raise row.error(problem, field=field, expected="only the reply, or all turns of the prompt and then the reply")
    return turns


def _refuse_open_end(row: Row, field: str, turns: Turns) -> Turns:
    """Return a conversation that ends with an assistant turn; refuse any other."""
    if turns[-1].role != "assistant":
        raise row.error(f"ends with a turn of {turns[-1].role!r}", field=field, expected="an assistant turn last")
    return turns


def _kind(prompt: Prompt) -> str:
    return "a conversation" if prompt.is_chat else "text"
