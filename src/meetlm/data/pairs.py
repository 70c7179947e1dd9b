"""TRL's preference format: ``prompt``, ``chosen``, ``rejected``, each plain text or a list of chat messages.

The prompt may be implicit: rows with ``chosen`` and ``rejected`` alone begin alike, and where they part the
completions start.

* Plain text parts at a border of words: the shared prefix is cut back to before its last white space, so that
  completions keep their leading space and no word is torn (TRL cuts at the first differing character).
* Conversations part at the first turn that differs; at least the last turn is completion. Where a user or
  system turn would land in a completion, the two sides answer different prompts: each side is then split
  before its closing assistant turns and ``rejected_prompt`` is set, as for HH.

A text ``prompt`` beside chat ``chosen`` and ``rejected`` (as in UltraFeedback) is taken as a mere copy of
their shared turns, as TRL does; chat completions that repeat the whole prompt lose it. Other columns
(``tools``, ids, scores) are not read.
"""

from __future__ import annotations

from os.path import commonprefix

from meetlm.data.example import PreferenceExample, Prompt, Turn, as_reply
from meetlm.data.rows import Row, kind_of

Turns = tuple[Turn, ...]
Text = str | Turns

MARKS = ("label", "score", "level")
"""What pointwise rows say of their one completion."""


def parse(row: Row) -> PreferenceExample:
    """Turn one row into an example, grouped by its prompt.

    Raises:
        DataError: A field is missing or malformed, the row is pointwise, text and conversation are mixed, or a
            conversation does not end with an assistant turn.
    """
    _refuse_pointwise(row)
    chosen, rejected = (read_prompt(row, field).content for field in ("chosen", "rejected"))
    prompt = read_prompt(row, "prompt").content if row.fields.get("prompt") is not None else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _example(row, *_split_text(row, prompt, chosen, rejected))
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise row.error(f"is {_kind(rejected)}", field="rejected", expected=f"{_kind(chosen)}, as in 'chosen'")
    if isinstance(prompt, tuple):
        chosen, rejected = _after(row, "chosen", prompt, chosen), _after(row, "rejected", prompt, rejected)
        return _example(row, prompt, chosen, rejected, None)
    return _example(row, *_split_turns(_ended(row, "chosen", chosen), _ended(row, "rejected", rejected)))


def _refuse_pointwise(row: Row) -> None:
    marks = [name for name in MARKS if name in row.fields]
    if "completion" in row.fields and marks and not {"chosen", "rejected"} & row.fields.keys():
        raise row.error(
            f"is pointwise: one completion, with a {marks[0]}",
            expected="a pair, which the data formats and DPO compare: 'chosen' and 'rejected'",
        )


def _example(row: Row, prompt: Text, chosen: Text, rejected: Text, other: Text | None) -> PreferenceExample:
    asked, other_asked = Prompt(prompt), None if other is None else Prompt(other)
    sides = _reply(row, "chosen", chosen), _reply(row, "rejected", rejected)
    return PreferenceExample(asked, *sides, asked.group, row.origin, other_asked)


def _reply(row: Row, field: str, said: Text) -> Turn:
    if isinstance(said, str):
        return as_reply(said)
    if len(said) > 1:
        roles = ", ".join(turn.role for turn in said)
        raise row.error(f"replies in {len(said)} turns ({roles})", field=field, expected="one assistant message")
    return said[0]


def _split_text(row: Row, prompt: Text | None, chosen: str, rejected: str) -> tuple[str, str, str, None]:
    if isinstance(prompt, tuple):
        raise row.error("is a conversation", field="prompt", expected="text, as 'chosen' and 'rejected' are")
    if prompt is not None:
        return prompt, chosen, rejected, None
    border = _border(chosen, rejected)
    return chosen[:border], chosen[border:], rejected[border:], None


def _border(chosen: str, rejected: str) -> int:
    """The last place in the shared prefix where white space, and with it a new word on both sides, begins."""
    shared = commonprefix([chosen, rejected])
    end = len(shared)
    if end < len(chosen) and end < len(rejected):
        if shared[-1:].isspace():
            return len(shared.rstrip())
        if chosen[end].isspace() and rejected[end].isspace():
            return end
    words = shared.rsplit(None, 1)  # one side ends here or a word goes on: that word belongs to the completions
    return len(words[0]) if len(words) == 2 else 0


def _split_turns(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns, Turns | None]:
    most = min(len(chosen), len(rejected)) - 1
    shared = next((at for at in range(most) if chosen[at] != rejected[at]), most)
    if all(turn.role not in ("user", "system") for turn in chosen[shared:] + rejected[shared:]):
        return chosen[:shared], chosen[shared:], rejected[shared:], None
    first, second = _reply_start(chosen), _reply_start(rejected)
    other = None if chosen[:first] == rejected[:second] else rejected[:second]
    return chosen[:first], chosen[first:], rejected[second:], other


def _reply_start(turns: Turns) -> int:
    """The index of the first of the closing assistant turns."""
    start = len(turns)
    while start and turns[start - 1].role == "assistant":
        start -= 1
    return start


def _after(row: Row, field: str, prompt: Turns, turns: Turns) -> Turns:
    """Return a completion that stands beside an explicit prompt, without the prompt where it repeats that."""
    turns = _ended(row, field, turns)
    turns = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if any(turn.role in ("user", "system") for turn in turns):
        what = "holds turns of a user or the system that are not the prompt's"
        raise row.error(what, field=field, expected="the reply alone, or the prompt's turns and the reply")
    return turns


def _ended(row: Row, field: str, turns: Turns) -> Turns:
    if turns[-1].role != "assistant":
        raise row.error(f"ends with a turn of {turns[-1].role!r}", field=field, expected="an assistant's turn last")
    return turns


def _kind(text: Text) -> str:
    return "text" if isinstance(text, str) else "a conversation"


def read_prompt(row: Row, field: str) -> Prompt:
    """Return a field that holds text, or a list of messages with role and content.

    Raises:
        DataError: It is missing or neither, or a message lacks one of the two.
    """
    value = row.fields.get(field)
    if isinstance(value, str):
        return Prompt(row.text(field))
    if not isinstance(value, list):
        expected = "text, or a list of messages with role and content"
        if field not in row.fields:
            row.value(field, expected, object)
        raise row.error(f"is {kind_of(value)}", field=field, expected=expected)
    if not value:
        raise row.error("is an empty list", field=field, expected="at least one message")
    turns = []
    for at, message in enumerate(value):
        name = f"{field}[{at}]"
        if not isinstance(message, dict):
            raise row.error(f"is {kind_of(message)}", field=name, expected="an object with role and content")
        inside = row.wrap(name, message)
        turns.append(Turn(role=inside.text("role"), content=inside.text("content")))
    return Prompt(tuple(turns))
