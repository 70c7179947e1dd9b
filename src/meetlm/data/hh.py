r"""Anthropic's HH-RLHF: two transcripts per row, ``\n\nHuman: …\n\nAssistant: …``, whose last replies differ.

Knows the transcripts; knows neither files nor tokenizers. Each side is split at its own last
``\n\nAssistant:``. In some rows the two sides differ before that: cutting the rejected side by the length of
the chosen prompt, as is often done, would then tear a word in two. Such rows carry ``other_prompt``; the
filters drop and count them, and rows in which a human's turn follows the reply.
"""

from __future__ import annotations

import re

from meetlm.data.example import Example, Prompt, Turn, as_reply
from meetlm.data.rows import Row

ASSISTANT = "\n\nAssistant:"
HUMAN = "\n\nHuman:"
STOP = (HUMAN,)
"""A reply is over where the model starts to write the human's next turn."""

_MARKS = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse(row: Row) -> Example:
    r"""Turn a row with the fields ``chosen`` and ``rejected`` into an example, grouped by its prompt.

    Raises:
        DataError: A field is missing, is not a string, or holds no ``\n\nAssistant:``.
    """
    prompt, chosen = _split(row, "chosen")
    other_prompt, rejected = _split(row, "rejected")
    return Example.of_pair(
        prompt=Prompt(prompt),
        chosen=as_reply(chosen),
        rejected=as_reply(rejected),
        group=prompt,
        origin=row.origin,
        other_prompt=None if other_prompt == prompt else Prompt(other_prompt),
        remarks=("human_turn",) if HUMAN in chosen or HUMAN in rejected else (),
    )


def is_transcript(text: str) -> bool:
    """Whether text has the marks of a transcript already."""
    return text.lstrip().startswith(HUMAN.strip()) or HUMAN in text


def ask(prompt: Prompt) -> Prompt:
    r"""Return a prompt as the transcripts have it: ``\n\nHuman: …\n\nAssistant:``.

    Args:
        prompt: Text without marks is what the human says; a transcript is opened and closed where it is not; a
            conversation is left alone.
    """
    if not isinstance(prompt.content, str):
        return prompt
    if not is_transcript(prompt.content):
        return Prompt(f"{HUMAN} {prompt.content.strip()}{ASSISTANT}")
    text = _opened(prompt.content)
    return Prompt(text if text.rfind(ASSISTANT) > text.rfind(HUMAN) else text.rstrip() + ASSISTANT)


def to_turns(prompt: Prompt) -> tuple[Turn, ...]:
    """Return a prompt as turns: a transcript split into its turns, other text as one user message."""
    if prompt.is_chat:
        return prompt.turns
    if not is_transcript(prompt.text()):
        return (Turn("user", prompt.text().strip()),)
    before, *parts = _MARKS.split(_opened(prompt.text()))
    turns = [Turn("system", before.strip())] if before.strip() else []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        turns.append(Turn(_ROLES[speaker], text.strip()))
    if turns[-1] == as_reply(""):
        turns.pop()  # it only opens the reply
    return tuple(turns)


def _split(row: Row, field: str) -> tuple[str, str]:
    """Return prompt (its end is ``ASSISTANT``) and completion (its leading space kept) of one transcript."""
    head, marker, reply = _opened(row.text(field)).rpartition(ASSISTANT)
    if not marker:
        raise row.error("the transcript has no assistant turn", field=field, expected=f"{ASSISTANT!r} before the reply")
    return head + marker, reply


def _opened(transcript: str) -> str:
    r"""Return a transcript with ``\n\n`` before its first mark."""
    starts = transcript.lstrip().startswith(HUMAN.strip())
    return "\n\n" + transcript.lstrip() if starts else transcript
