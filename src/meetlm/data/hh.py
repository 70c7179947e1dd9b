r"""Anthropic's HH-RLHF: two transcripts per row, ``\n\nHuman: …\n\nAssistant: …``, whose last replies differ.

Each side is split at its own last ``\n\nAssistant:``. In some rows the two sides differ before that point. Cutting the
rejected side at the length of the chosen prompt, as is often done, would then cut a word in two. Such rows have
``other_prompt``; the filters drop and count them, and also rows in which a human turn follows the reply.
"""

from __future__ import annotations

import re

from meetlm.data.example import Example, Prompt, Turn, as_reply
from meetlm.data.rows import Row

ASSISTANT = "\n\nAssistant:"
HUMAN = "\n\nHuman:"
STOP = (HUMAN,)
"""A reply ends where the model starts to write the next human turn."""

_MARKS = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse(row: Row) -> Example:
    r"""Turn a row with the fields ``chosen`` and ``rejected`` into an example, grouped by its prompt.

    Raises:
        DataError: A field is missing, is not a string, or contains no ``\n\nAssistant:``.
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
    """Whether text already has the form of a transcript."""
    return text.lstrip().startswith(HUMAN.strip()) or HUMAN in text


def as_transcript(prompt: Prompt) -> Prompt:
    r"""Return a prompt in the form of the transcripts: ``\n\nHuman: …\n\nAssistant:``.

    A transcript gets a missing ``\n\n`` at its start or ``\n\nAssistant:`` at its end; other text becomes a human turn;
    a conversation is returned unchanged.
    """
    if not isinstance(prompt.content, str):
        return prompt
    if not is_transcript(prompt.content):
        return Prompt(f"{HUMAN} {prompt.content.strip()}{ASSISTANT}")
    text = _with_leading_newlines(prompt.content)
    return Prompt(text if text.rfind(ASSISTANT) > text.rfind(HUMAN) else text.rstrip() + ASSISTANT)


def to_turns(prompt: Prompt) -> tuple[Turn, ...]:
    """Return a prompt as turns: a transcript split into its turns, other text as one user message."""
    if prompt.is_chat:
        return prompt.turns
    if not is_transcript(prompt.text()):
        return (Turn("user", prompt.text().strip()),)
    before, *parts = _MARKS.split(_with_leading_newlines(prompt.text()))
    turns = [Turn("system", before.strip())] if before.strip() else []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        turns.append(Turn(_ROLES[speaker], text.strip()))
    if turns[-1] == as_reply(""):
        turns.pop()  # the empty turn only introduces the reply
    return tuple(turns)


def _split(row: Row, field: str) -> tuple[str, str]:
    """Return the prompt of a transcript, up to and including ``ASSISTANT``, and its reply with its leading space."""
    head, marker, reply = _with_leading_newlines(row.text(field)).rpartition(ASSISTANT)
    if not marker:
        raise row.error("the transcript has no assistant turn", field=field, expected=f"{ASSISTANT!r} before the reply")
    return head + marker, reply


def _with_leading_newlines(transcript: str) -> str:
    r"""Return a transcript that starts with ``Human:`` with ``\n\n`` before it, and any other text unchanged."""
    stripped = transcript.lstrip()
    return "\n\n" + stripped if stripped.startswith(HUMAN.strip()) else transcript
