"""From the body of a request to requests of the session: level, prompt, limits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from meetlm.config.errors import MeetError, nearest
from meetlm.data.example import Prompt
from meetlm.data.prompt_format import PromptFormat
from meetlm.generation.session import Request
from meetlm.generation.settings import Sampling
from meetlm.policy.loading import num_positions
from meetlm.run.aligned import Aligned
from meetlm.run.folder import Meet
from meetlm.run.levels import Guidance, Level, parse_level
from meetlm.serving.errors import APIError
from meetlm.serving.protocol import MAX_WEIGHT, ChatRequest, CompletionRequest, Message, PromptLevel
from meetlm.serving.settings import ServingSettings


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be submitted.

    Attributes:
        requests: A request of the session per completion: n of the first prompt, n of the second, …
        num_prompt_tokens: Tokens of all prompts, control slots included.
        warning: About a level outside the safe range; ``None`` inside it.
    """

    requests: tuple[Request, ...]
    num_prompt_tokens: int
    warning: str | None


class Preparer:
    """Checks requests and turns them into requests of the session.

    It has a tokenizer of its own, since a tokenizer must not be used by two threads at once.

    Args:
        aligned: The run.
        name: Its model name.
        settings: Limits.
    """

    def __init__(self, aligned: Aligned, name: str, settings: ServingSettings) -> None:
        prompt_format = PromptFormat(deepcopy(aligned.tokenizer), aligned.format.spec)
        self.aligned = Aligned(aligned.policy, prompt_format, aligned.meet)
        self.name, self._settings = name, settings
        self._max_positions = num_positions(aligned.policy.lm)

    @property
    def models(self) -> list[str]:
        """The name of the run at its default level, and at each level."""
        return [self.name, *(f"{self.name}:{level}" for level in self.aligned.levels)]

    def level(self, body: PromptLevel) -> Level | None:
        """Return the level that a request states; ``None`` for the default level.

        Raises:
            APIError: The model is unknown, or the level is stated twice.
        """
        name, _, text = body.model.removeprefix(self.name).partition(":")
        if not body.model.startswith(self.name) or name:
            message = f"unknown model {body.model!r}{nearest(body.model, self.models)}"
            raise APIError(404, message, param="model", code="model_not_found")
        if not text:
            return body.level
        if body.level is not None:
            raise APIError(400, f"level: the model {body.model!r} states the level already", param="level")
        try:
            level = parse_level(text, "model")
        except MeetError as error:
            raise APIError(400, str(error), param="model") from error
        numbers = level.values() if isinstance(level, dict) else [level]
        if any(isinstance(number, float) and not abs(number) <= MAX_WEIGHT for number in numbers):
            raise APIError(400, f"model: expected numbers from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}", param="model")
        return level

    def prepare(self, body: ChatRequest | CompletionRequest) -> Prepared:
        """Return the requests of the session.

        Raises:
            APIError: The model, a level, a prompt or a limit.
        """
        prompts: Sequence[Prompt | str]
        prompts = [conversation(body.messages, self.aligned.meet)] if isinstance(body, ChatRequest) else body.prompts
        count = body.n * len(prompts)
        if count > self._settings.max_n:
            raise APIError(400, f"n: {count} completions; the server allows {self._settings.max_n}", param="n")
        level, guidance = self.level(body), Guidance(body.guidance, body.against)
        seed = secrets.randbelow(2**32) if body.seed is None else body.seed
        requests: list[Request] = []
        num_prompt_tokens = 0
        try:
            warning = self.aligned.warning(level, guidance)
            for prompt in prompts:
                branches = self.aligned.branches(prompt, level, guidance)
                length = max(len(branch.ids) for branch in branches)
                num_prompt_tokens += len(branches[0].ids)
                sampling = Sampling(
                    max_new_tokens=self._max_tokens(body, length), temperature=body.temperature, top_p=body.top_p
                )
                requests += [
                    Request(
                        branches,
                        sampling,
                        seed,
                        stream=len(requests) + choice,
                        stop=body.stops,
                        logprobs=body.num_top_logprobs is not None,
                        num_top_logprobs=body.num_top_logprobs or 0,
                    )
                    for choice in range(body.n)
                ]
        except MeetError as error:
            raise APIError(400, str(error)) from error
        return Prepared(tuple(requests), num_prompt_tokens, warning)

    def _max_tokens(self, body: ChatRequest | CompletionRequest, length: int) -> int:
        """Return the largest number of new tokens after a prompt of ``length`` tokens."""
        limit = self._settings.max_tokens
        asked = body.max_tokens or (body.max_completion_tokens if isinstance(body, ChatRequest) else None)
        if asked is not None and asked > limit:
            raise APIError(400, f"max_tokens: {asked}; the server allows {limit}", param="max_tokens")
        free = limit if self._max_positions is None else self._max_positions - length
        if free < (asked or 1):
            raise APIError(
                400,
                f"the prompt has {length} tokens and the completion {asked or 'at least 1'}; the model has "
                f"{self._max_positions} positions",
                param="messages" if isinstance(body, ChatRequest) else "prompt",
                code="context_length_exceeded",
            )
        return asked or min(limit, free)


def conversation(messages: Sequence[Message], meet: Meet) -> Prompt:
    """Return messages in the form of the prompts that a run was trained on.

    Raises:
        APIError: The run was trained on prompts of plain text, and there are several messages.
    """
    prompt = Prompt(tuple(message.turn for message in messages))
    if meet.conversational:
        return prompt
    if meet.source == "hh":
        return Prompt(f"\n\n{prompt.dialogue()}")
    if [turn.role for turn in prompt.turns] != ["user"]:
        raise APIError(
            400,
            "messages: the run was trained on prompts of plain text; send one message of the role user, or use "
            "/v1/completions",
            param="messages",
        )
    return Prompt(prompt.turns[0].content)
