r"""Anthropic's HH-RLHF: two transcripts a row, ``\n\nHuman: …\n\nAssistant: …``, whose last replies differ.

Knows the transcripts; knows neither files nor tokenizers. Each side is split at its own last
``\n\nAssistant:``. In some rows the two sides differ before that: cutting the rejected side by the length of
the chosen prompt, as is often done, would then tear a word in two. Such rows carry ``rejected_prompt``; the
filters drop and count them.
"""

from __future__ import annotations

from meetlm.data.example import PreferenceExample, Prompt, as_reply
from meetlm.data.rows import Row

ASSISTANT = "\n\nAssistant:"
HUMAN = "\n\nHuman:"
STOP = (HUMAN,)
"""A reply is over where the model starts to write the human's next turn."""


def parse(row: Row) -> PreferenceExample:
    r"""Turn a row with the fields ``chosen`` and ``rejected`` into an example, grouped by its prompt.

    Raises:
        DataError: A field is missing, is not a string, or holds no ``\n\nAssistant:``.
    """
    prompt, chosen = _split(row, "chosen")
    rejected_prompt, rejected = _split(row, "rejected")
    return PreferenceExample(
        prompt=Prompt(prompt),
        chosen=as_reply(chosen),
        rejected=as_reply(rejected),
        group=prompt,
        origin=row.origin,
        rejected_prompt=None if rejected_prompt == prompt else Prompt(rejected_prompt),
    )


def ask(prompt: Prompt) -> Prompt:
    r"""Return a prompt as the transcripts put it: ``\n\nHuman: …\n\nAssistant:``.

    Args:
        prompt: Bare text is what the human says; text with ``\n\nHuman:`` in it is a transcript already, and a
            conversation is left alone.
    """
    if not isinstance(prompt.content, str) or HUMAN in prompt.content:
        return prompt
    return Prompt(f"{HUMAN} {prompt.content.strip()}{ASSISTANT}")


def _split(row: Row, field: str) -> tuple[str, str]:
    """Return prompt (its end is ``ASSISTANT``) and completion (its leading space kept) of one transcript."""
    transcript = row.text(field)
    head, marker, said = transcript.rpartition(ASSISTANT)
    if not marker:
        raise row.error("the transcript has no assistant turn", field=field, expected=f"{ASSISTANT!r} before the reply")
    return head + marker, said
