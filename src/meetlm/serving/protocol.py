"""Bodies of requests as in OpenAI's API, and the fields ``level``, ``guidance`` and ``against``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from meetlm.config.settings import Settings
from meetlm.data.example import Turn


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair; expected valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
LevelField = str | float | dict[str, str | float]
Prompt = Annotated[Text, Field(min_length=1)]
StopString = Annotated[Text, Field(min_length=1, max_length=256)]
MAX_WEIGHT = 100.0
"""Largest absolute level weight and strength of guidance: larger ones may overflow to NaN."""
MIN_TEMPERATURE = 1e-6
"""Least temperature above 0: logits divided by a smaller one may overflow."""


class Body(Settings):
    """A JSON object of a request: no value is converted to another type, and null is as if the field were absent."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the JSON schema, in which fields that may be absent may be null."""
        json_schema = handler.resolve_ref_schema(handler(schema))
        for name, field in json_schema["properties"].items():
            if name not in json_schema.get("required", []) and {"type": "null"} not in field.get("anyOf", []):
                json_schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}
        return json_schema


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @property
    def turn(self) -> Turn:
        """The message as the rest of the program has it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class StreamOptions(Body):
    """Options of a streamed response."""

    include_usage: bool = Field(False, description="whether a last chunk has the number of tokens")


class ResponseFormat(Body):
    """The format of replies: text only."""

    type: Literal["text"]


class PromptLevel(Body):
    """The level of a request."""

    model: Text = Field(description="name of the run, or NAME:LEVEL with a level as `meet generate --level` takes it")
    level: LevelField | None = Field(
        None,
        description="name of a level, number on the scale from 0 (worst level) to 1 (best level), or weights by name; "
        f"numbers from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}",
    )
    guidance: float = Field(
        0.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT, description="strength s of guidance: sample from l + s * (l - l_against)"
    )
    against: LevelField | None = Field(
        None, description="level that guidance moves away from; by default the worst level"
    )

    @field_validator("level", "against")
    @classmethod
    def _bounded(cls, level: LevelField | None) -> LevelField | None:
        numbers = level.values() if isinstance(level, dict) else [level]
        if any(isinstance(number, float | int) and abs(number) > MAX_WEIGHT for number in numbers):
            raise ValueError(f"expected numbers from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
        return level


class Generation(PromptLevel):
    """The fields that requests for replies to messages and to text share."""

    temperature: float = Field(1.0, ge=0, le=100, description="sampling temperature; 0 = greedy decoding")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the most likely tokens of this total probability")
    n: int = Field(1, ge=1, description="number of completions per prompt")
    seed: int | None = Field(None, ge=0, lt=2**32, description="seed of sampling; by default a random one")
    stop: StopString | Annotated[list[StopString], Field(max_length=256)] = Field(
        [], description="strings at which a completion ends"
    )
    stream: bool = Field(False, description="whether to send the completion in pieces, as server-sent events")
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(
        None, ge=1, description="largest number of new tokens; by default the server's limit"
    )
    presence_penalty: float = Field(0.0, ge=0, le=0, description="not supported: 0 only")
    frequency_penalty: float = Field(0.0, ge=0, le=0, description="not supported: 0 only")
    user: str | None = Field(None, description="has no effect")

    @field_validator("temperature")
    @classmethod
    def _divisible(cls, temperature: float) -> float:
        if 0 < temperature < MIN_TEMPERATURE:
            raise ValueError(f"expected 0, or {MIN_TEMPERATURE:g} or more, got {temperature:g}")
        return temperature

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(Generation):
    """The body of a request to ``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, description="the conversation; its last message may open the reply")
    max_completion_tokens: int | None = Field(None, ge=1, description="the same as max_tokens")
    logprobs: bool = Field(False, description="whether to return the log-prob of each token")
    top_logprobs: int = Field(0, ge=0, le=20, description="number of most likely tokens per position; needs logprobs")
    response_format: ResponseFormat = ResponseFormat(type="text")

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs requires logprobs: true")
        if self.max_tokens and self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are the same; send one of them")
        return self

    @property
    def num_top_logprobs(self) -> int | None:
        """Number of most likely tokens per position; ``None`` without log-probs."""
        return self.top_logprobs if self.logprobs else None


class CompletionRequest(Generation):
    """The body of a request to ``/v1/completions``."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1)] = Field(
        description="text, formatted as the prompts that the run has seen"
    )
    logprobs: int | None = Field(None, ge=0, le=20, description="number of most likely tokens per position")

    @property
    def num_top_logprobs(self) -> int | None:
        """Number of most likely tokens per position; ``None`` without log-probs."""
        return self.logprobs

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ScoreRequest(Body):
    """The body of a request to ``/v1/score``."""

    messages: list[Message] = Field(min_length=1, description="the conversation")
    completion: Text = Field(description="the reply to score")


class FeedbackRequest(Body):
    """The body of a request to ``/v1/feedback``."""

    messages: list[Message] = Field(min_length=1, description="the conversation")
    completion: Text = Field(min_length=1, description="the reply")
    label: bool = Field(description="whether the reply is good")
    model: Text = Field("", description="name and level of the model that replied")
