"""Examples: the common form of all data sources, independent of file formats, tokenizers and models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Message = dict[str, Any]
"""A chat message as in JSON: ``role``, ``content`` and any other fields."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, or a reply.

    Attributes:
        role: The speaker: ``user``, ``assistant``, ``system``, ``tool``, …
        content: The text of the message.
        extra: The other fields of the message (``tool_calls``, ``name``, …) as JSON text; empty if there are none.
    """

    role: str
    content: str
    extra: str = field(default="", repr=False)

    def to_message(self) -> Message:
        """Return the turn as a message for a chat template."""
        return {"role": self.role, "content": self.content, **(json.loads(self.extra) if self.extra else {})}

    @classmethod
    def from_message(cls, message: Message) -> Turn:
        """Return what :meth:`to_message` wrote."""
        extra = {name: value for name, value in message.items() if name not in ("role", "content")}
        text = json.dumps(extra, sort_keys=True, ensure_ascii=False) if extra else ""
        return cls(message["role"], message["content"], text)

    @property
    def stripped(self) -> Turn:
        """The turn without white space around its text."""
        return Turn(self.role, self.content.strip(), self.extra)

    @property
    def is_blank(self) -> bool:
        """Whether the message contains only white space."""
        return not self.content.strip() and not self.extra


_SPEAKERS = {"user": "Human", "assistant": "Assistant"}


def as_reply(text: str) -> Turn:
    """Return ``text`` as an assistant turn."""
    return Turn("assistant", text)


@dataclass(frozen=True, slots=True)
class Prompt:
    r"""What a reply answers: plain text, or a conversation.

    Attributes:
        content: Text that the reply continues directly (HH: up to the last ``\n\nAssistant:``), or turns, which the
            tokenizer's chat template renders.
    """

    content: str | tuple[Turn, ...]

    @property
    def is_chat(self) -> bool:
        """Whether the prompt is a conversation."""
        return not isinstance(self.content, str)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation; plain text is one user message."""
        return (Turn("user", self.content),) if isinstance(self.content, str) else self.content

    @property
    def is_blank(self) -> bool:
        """Whether the prompt contains only white space."""
        return all(turn.is_blank for turn in self.turns)

    @property
    def id(self) -> str:
        """A short hash of the text or messages, without the white space around them."""
        return hashlib.sha256(json.dumps(self._names(strip=True), ensure_ascii=False).encode()).hexdigest()[:12]

    @property
    def group(self) -> str:
        """The group of rows with this prompt."""
        return self.content if isinstance(self.content, str) else json.dumps(self._names(strip=False))

    def text(self) -> str:
        """Return the text of the prompt: the contents of its messages, one below the other."""
        return "\n".join(turn.content for turn in self.turns)

    def dialogue(self) -> str:
        """Return the messages as ``Human: …`` and ``Assistant: …`` paragraphs; other roles keep their name.

        The other fields of a message, such as its tool calls, follow its text as JSON.
        """
        texts = [(turn.role, f"{turn.content.strip()}\n{turn.extra}".strip()) for turn in self.turns]
        return "\n\n".join(f"{_SPEAKERS.get(role, role.title())}: {text}" for role, text in texts)

    def messages(self) -> list[Message]:
        """Return the prompt as chat messages; plain text is one user message."""
        return [turn.to_message() for turn in self.turns]

    def to_json(self) -> str | list[Message]:
        """Return the prompt as in files: a string, or a list of messages."""
        return self.content if isinstance(self.content, str) else self.messages()

    @classmethod
    def from_json(cls, value: str | list[Message]) -> Prompt:
        """Return what :meth:`to_json` wrote."""
        return cls(value if isinstance(value, str) else tuple(map(Turn.from_message, value)))

    def _names(self, *, strip: bool) -> str | list[list[str]]:
        if isinstance(self.content, str):
            return self.content.strip() if strip else self.content
        texts = [(turn, turn.content.strip() if strip else turn.content) for turn in self.content]
        return [[turn.role, text, *([turn.extra] if turn.extra else [])] for turn, text in texts]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an example was read: ``file`` (or hub name) and its 1-based ``line`` (row, for tables)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


Feedback = tuple[tuple[str, str | float], ...]
"""Feedback on a reply: names of attributes, each with the name of a level or a number (more is better).

If the data name no attribute, as in pairs, the only attribute has the name ``""``.
"""

Weights = tuple[float, ...]
"""A weight for each of K levels."""


class Rank(float):
    """A rank in a list from best to worst, as a negative number; comparable only among replies to the same prompt."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply and the feedback on it.

    Attributes:
        reply: The reply, without the prompt; plain text includes its leading space.
        feedback: Feedback on the reply; an attribute may be missing.
        origin: File and line of the reply.
        weights: Level weights that follow from the feedback; empty until a level scheme is applied.
    """

    reply: Turn
    feedback: Feedback
    origin: Origin
    weights: Weights = ()


PAIR_FEEDBACK: tuple[Feedback, Feedback] = ((("", "good"),), (("", "bad"),))
"""Feedback on the chosen and the rejected reply of a pair."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its replies; a chosen and a rejected reply are a pair (x, y_w, y_l) as in section 3.1 of the paper.

    Attributes:
        prompt: x.
        completions: The replies, best first if the data order them.
        group: Identifies the prompt or post: evaluation uses one example per group, bootstraps resample groups.
        origin: File and line of the example.
        other_prompt: The prompt of the rejected reply if it differs from ``prompt``, else ``None``.
        remarks: Findings of the parser: names of :data:`~meetlm.data.filters.REASONS` and
            :data:`~meetlm.data.filters.ODDITIES`.
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    group: str
    origin: Origin
    other_prompt: Prompt | None = None
    remarks: tuple[str, ...] = ()

    @classmethod
    def of_pair(cls, prompt: Prompt, chosen: Turn, rejected: Turn, group: str, origin: Origin, **more: Any) -> Example:
        """Return the example of a chosen and a rejected reply; ``more`` are further attributes."""
        completions = tuple(map(Completion, (chosen, rejected), PAIR_FEEDBACK, (origin, origin)))
        return cls(prompt, completions, group, origin, **more)

    @property
    def is_pair(self) -> bool:
        """Whether it is a chosen and a rejected reply."""
        return tuple(completion.feedback for completion in self.completions) == PAIR_FEEDBACK

    @property
    def replies(self) -> tuple[Turn, ...]:
        """The replies alone."""
        return tuple(completion.reply for completion in self.completions)

    @property
    def best_and_worst(self) -> tuple[Turn, Turn]:
        """The best and the worst reply of a pair, or of replies that a level scheme has ordered.

        If there is only one reply, it is both.
        """
        assert self.is_pair or self.completions[0].weights, "only a level scheme orders the replies of other data"
        return self.completions[0].reply, self.completions[-1].reply

    @property
    def preferred(self) -> Turn | None:
        """The chosen reply of a pair, or the reply with the highest score; ``None`` if there is no such reply."""
        if self.is_pair:
            return self.completions[0].reply
        scores = [dict(completion.feedback).get("") for completion in self.completions]
        numbers = [score for score in scores if isinstance(score, float)]
        if len(numbers) < len(scores) or len(set(numbers)) < 2:
            return None
        return self.completions[numbers.index(max(numbers))].reply


@dataclass(frozen=True, slots=True)
class UnfilteredRows(Generic[T]):
    """The rows of a split, unfiltered and in the order of the file.

    Attributes:
        rows: The parsed rows.
        other_split_rows: Rows of another split in the same file; they are left out.
    """

    rows: list[T]
    other_split_rows: list[Origin]


def fingerprint(rows: Iterable[tuple[Prompt, *tuple[Turn | None, ...]]]) -> str:
    """Return a hash of prompts and replies, in order: equal for equal rows, and the same in every version of meetlm."""
    digest = hashlib.sha256()
    for prompt, *replies in rows:
        texts = [turn if turn is None else (turn,) if prompt.is_chat else turn.content for turn in replies]
        digest.update(repr((prompt.content, *texts)).encode())
        digest.update("".join(turn.extra for turn in (*prompt.turns, *replies) if turn is not None).encode())
    return digest.hexdigest()
