"""Bodies of responses as in OpenAI's API, and the field ``warning``; they define the server's OpenAPI document."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import (
    Any,
    Literal,
    NotRequired,  # pydantic requires these before Python 3.12
)
from uuid import uuid4

from typing_extensions import TypedDict

from meetlm.config.settings import Settings

VERY_UNLIKELY = -9999.0
"""Log-prob that stands for minus infinity, which JSON does not have; as in OpenAI's API."""
FinishReason = Literal["stop", "length"]


class ErrorDetail(TypedDict):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(TypedDict):
    """Body of a response with status 4xx or 5xx."""

    error: ErrorDetail


class Usage(TypedDict):
    """Number of tokens; those of a control slot count as tokens of the prompt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(TypedDict):
    """A token and its log-prob in nats; ``bytes`` is null for a token that is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    """A sampled token, and the most likely tokens in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probs of the tokens of a reply."""

    content: list[ChatTokenLogprob]


class AssistantMessage(TypedDict):
    """A reply."""

    role: Literal["assistant"]
    content: str


class ChatChoice(TypedDict):
    """One of the replies to a conversation."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    """Body of a response of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    warning: NotRequired[str]


class TextLogprobs(TypedDict):
    """Log-probs of the tokens of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(TypedDict):
    """One of the completions of the prompts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(TypedDict):
    """Body of a response of ``/v1/completions``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    warning: NotRequired[str]


class Model(TypedDict):
    """The run at a level, or at its default level."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """Body of a response of ``/v1/models``."""

    object: Literal["list"]
    data: list[Model]


class Health(TypedDict):
    """Whether the server can generate."""

    status: Literal["ok", "failed"]


class LevelsAttribute(TypedDict):
    """An attribute and its levels, the worst one first where they have an order."""

    name: str
    levels: list[str]
    is_ordered: bool


class ScorerInfo(TypedDict):
    """A scorer that the server was started with."""

    name: str
    description: str
    higher_is_better: bool


class Levels(TypedDict):
    """Body of a response of ``/v1/levels``."""

    model: str
    attributes: list[LevelsAttribute]
    default: str | dict[str, float] | None
    dial: dict[str, dict[str, Any]]
    takes_mixes: bool
    max_tokens: int
    feedback: str
    scorers: list[ScorerInfo]


class AttributeScore(TypedDict):
    """log p(reply | best level) - log p(reply | worst level) in nats: summed, and the mean over the tokens."""

    attribute: str
    worst: str
    best: str
    total: float
    per_token: float


class ScorerScore(TypedDict):
    """The score of a reply by a scorer; null where it has none, with the reason."""

    name: str
    value: float | None
    problem: str | None


class Scores(TypedDict):
    """Body of a response of ``/v1/score``."""

    scores: list[AttributeScore]
    scorers: list[ScorerScore]


class FeedbackId(TypedDict):
    """Id of a rated reply, with which it can be removed again."""

    id: str


class RemovedFeedback(FeedbackId):
    """Id of a rated reply that was removed."""

    deleted: Literal[True]


class TokenLogprob(Settings):
    """A sampled token.

    Attributes:
        token: Its text.
        logprob: Its log-prob in nats.
        top: The most likely tokens in its place and their log-probs.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


def finite(logprob: float) -> float:
    """Return a log-prob that JSON can express."""
    return logprob if math.isfinite(logprob) else VERY_UNLIKELY


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """Return the log-probs of a chat completion's tokens."""

    def entry(token: str, logprob: float) -> TopLogprob:
        is_whole = "\ufffd" not in token  # of a part of a character no text is known
        return {"token": token, "logprob": logprob, "bytes": list(token.encode()) if is_whole else None}

    return {
        "content": [
            {**entry(t.token, t.logprob), "top_logprobs": [entry(text, value) for text, value in t.top]} for t in tokens
        ]
    }


def text_logprobs(tokens: Sequence[TokenLogprob], start: int = 0) -> TextLogprobs:
    """Return the log-probs of a text completion's tokens; the text of the first one begins at ``start``."""
    offsets = [start]
    for token in tokens:
        offsets.append(offsets[-1] + len(token.token))
    return {
        "tokens": [t.token for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [dict(t.top) for t in tokens],
        "text_offset": offsets[:-1],
    }


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """Return the number of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def envelope(
    kind: Literal["chat.completion", "chat.completion.chunk", "text_completion"], model: str
) -> dict[str, Any]:
    """Return the fields of a response that its chunks share."""
    prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
    return {"id": f"{prefix}-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}
