"""Sends questions to an OpenAI-compatible endpoint, several at a time, and passes on each response as it arrives.

The ``openai`` client repeats calls after rate limits, time-outs, lost connections and server errors, after a wait that
grows exponentially or is given by ``Retry-After``. A call that still fails counts as failed. A failure that every other
call would share (a wrong key, model or URL, no connection; before the first response, anything but a refusal of the
call) stops the evaluation; calls under way are finished first, since they are paid for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from meetlm.config.errors import ConfigError
from meetlm.config.extras import require_extra
from meetlm.evaluation.settings import JudgeSettings

if TYPE_CHECKING:
    import openai

_SHARED_FAILURES = {
    401: "the key is not accepted",
    402: "the account has no credit",
    404: "the endpoint has no such model, or --judge.base_url is wrong",
    405: "--judge.base_url is wrong",
}
"""HTTP statuses that every other call would get too."""
_HINTS = {
    "max_completion_tokens": "set --judge.max_tokens null and --judge.extra '{max_completion_tokens: 1024}'",
    "max_tokens": "change --judge.max_tokens, or set it to null",
    "temperature": "set --judge.temperature null",
}
"""What to change where the endpoint refuses a parameter."""


@dataclass(frozen=True, slots=True)
class Call:
    """A question to an endpoint.

    Attributes:
        base_url: The endpoint.
        model: Name of the model at the endpoint.
        messages: Messages with ``role`` and ``content``.
        sampling: Further fields of the request: temperature, max_tokens, ….
    """

    base_url: str
    model: str
    messages: Sequence[dict[str, Any]]
    sampling: dict[str, Any]

    @classmethod
    def to_judge(cls, settings: JudgeSettings, messages: Sequence[dict[str, Any]]) -> Call:
        """Return the call that sends ``messages`` to a judge."""
        sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        settings_sent = {name: value for name, value in sampling.items() if value is not None}
        return cls(settings.base_url, settings.model, messages, settings_sent | settings.extra)

    @property
    def key(self) -> str:
        """A hash of everything that is sent, but not of the endpoint's key."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class JudgeResponse:
    """A response of an endpoint.

    Attributes:
        text: The raw text; empty if there was none.
        finish_reason: ``stop``, ``length``, … as the endpoint reports; ``None`` if it does not.
        served_model: The model that answered, as the endpoint reports.
        prompt_tokens: Number of tokens, as the endpoint reports; ``None`` if it does not.
        completion_tokens: Likewise.
    """

    text: str
    finish_reason: str | None
    served_model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


def ask(
    calls: Sequence[Call],
    settings: JudgeSettings,
    on_result: Callable[[Call, JudgeResponse | str], object],
    *,
    has_responses: bool = False,
) -> None:
    """Send calls to an endpoint, ``settings.concurrency`` at a time.

    Args:
        calls: The calls.
        settings: Settings of the endpoint.
        on_result: Called with each response as it arrives, or with the reason why a single call failed.
        has_responses: Whether the endpoint has answered calls like these before.

    Raises:
        ConfigError: ``openai`` is not installed, the key is missing, the endpoint fails in a way that all calls share,
            or no call was answered.
    """
    if not calls:
        return
    require_extra("openai", "judge", "an LLM judge")
    import openai

    if settings.key_env is not None and not os.environ.get(settings.key_env):
        raise ConfigError(missing_key(settings))
    last_failure = stop_reason = ""

    async def send(client: openai.AsyncOpenAI, slots: asyncio.Semaphore, call: Call) -> None:
        nonlocal has_responses, last_failure, stop_reason
        async with slots:
            if stop_reason:
                return
            try:
                completion = await client.chat.completions.create(
                    model=call.model, messages=cast(Any, call.messages), stream=False, extra_body=call.sampling
                )
                response = _response(completion)
            except (openai.APIError, ValueError) as error:
                last_failure, is_shared = _explain(error, settings.timeout, has_responses=has_responses)
                if is_shared:
                    stop_reason = stop_reason or last_failure
                on_result(call, last_failure)
            else:
                has_responses = True
                on_result(call, response)

    async def send_all() -> None:
        slots = asyncio.Semaphore(settings.concurrency)
        async with openai.AsyncOpenAI(
            api_key=os.environ[settings.key_env] if settings.key_env else "none",
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=settings.retries,
        ) as client:
            await asyncio.gather(*(send(client, slots, call) for call in calls))

    _run(send_all())
    endpoint = f"judge {settings.model!r} at {settings.base_url}"
    if stop_reason:
        remedy = "responses so far are stored; the same command continues from there"
        raise ConfigError(f"{endpoint}: {stop_reason}; {remedy}")
    if not has_responses:
        raise ConfigError(f"{endpoint}: none of {len(calls)} calls was answered; the last: {last_failure}")


def missing_key(settings: JudgeSettings) -> str:
    """Return the error message about a key that is not in the environment."""
    return (
        f"the environment variable {settings.key_env} is not set; it should hold the key for {settings.base_url} "
        "(--judge.key_env NAME names another variable; null if the endpoint requires no key)"
    )


def _explain(error: Exception, timeout: float, *, has_responses: bool) -> tuple[str, bool]:
    """Return why a call failed, and whether every other call would fail too."""
    import openai

    if isinstance(error, openai.APIStatusError):
        status, body = error.status_code, error.body
        message = body.get("message") if isinstance(body, dict) else None  # OpenAI's field; other servers differ
        reason = f"HTTP {status}: {_clip(str(message or error.response.text), 300)}"
        if status in _SHARED_FAILURES:
            return f"{reason} ({_SHARED_FAILURES[status]})", True
        is_refusal = status < 500 and status != 429
        if hint := next((hint for name, hint in _HINTS.items() if is_refusal and name in reason), ""):
            reason += f" ({hint})"
        return reason, error.code == "insufficient_quota" or not (is_refusal or has_responses)
    if isinstance(error, openai.APITimeoutError):
        return f"no answer in {timeout:g} s", not has_responses
    if isinstance(error, openai.APIConnectionError):
        return f"no connection: {error.__cause__ or error}", True
    if isinstance(error, UnicodeError):
        return f"the text cannot be sent: {error}", False
    body_text = error.doc if isinstance(error, json.JSONDecodeError) else str(error)
    hint = "is --judge.base_url right? It usually ends in /v1"
    return f"the endpoint answered with no chat completion ({hint}): {_clip(body_text, 120)}", not has_responses


def _response(completion: Any) -> JudgeResponse:
    """Return what a completion holds; servers that only resemble OpenAI's leave fields out.

    Raises:
        ValueError: It is not a chat completion; the message is its text.
    """
    choices: Any = getattr(completion, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    text = getattr(message, "content", None) or getattr(message, "refusal", None) or ""
    if message is None or not isinstance(text, str):
        has_json = hasattr(completion, "to_json")
        raise ValueError(completion.to_json(indent=None, warnings=False) if has_json else str(completion))
    usage = getattr(completion, "usage", None)
    return JudgeResponse(
        text=text.encode("utf-8", "replace").decode("utf-8"),  # half of a surrogate pair cannot be stored
        finish_reason=getattr(choices[0], "finish_reason", None),
        served_model=getattr(completion, "model", None),
        prompt_tokens=getattr(usage, "prompt_tokens", None),
        completion_tokens=getattr(usage, "completion_tokens", None),
    )


def _clip(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, also inside a running event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, work).result()
