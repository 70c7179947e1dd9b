"""Many questions to an OpenAI-compatible endpoint at once, each answer handed over as it arrives.

Knows no prompt and no verdict. Rate limits, time-outs, lost connections and server errors are tried again by the
``openai`` client: after as long as ``Retry-After`` asks for (a wait over two minutes counts as a failure), else with
exponential back-off. So are answers without any text, here; not where the endpoint says that it cut them off or
filtered them, as it would again. Every answer is handed over, also an empty one: it was paid for. So are those of calls
that are under way when it is given up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import Field, field_validator

from meetlm.config.errors import ConfigError
from meetlm.config.settings import Settings
from meetlm.evaluation.judge_cache import Answer, Call

if TYPE_CHECKING:
    import openai

T = TypeVar("T")

_HOPELESS = {
    401: "the key is not accepted",
    402: "the account has no credit",
    404: "the endpoint does not know this model, or the base URL is wrong",
    405: "the base URL is wrong",
}
"""What no other call can fare better with."""

_FINAL = {"length", "content_filter"}
"""Reasons to finish with which an empty answer would be empty again."""

_EMPTY_KEPT = (
    "empty answers are kept too, and the same command asks only for those that are missing: --judge-set ask_again=true "
    "asks for the empty ones again, --judge-set max_tokens=N leaves a model that reasons first more room"
)

_SET_APART = {"model", "messages", "temperature", "max_tokens", "stream", "n"}

OnAnswer = Callable[[Call, Answer, bool], object]
"""Takes a call, an answer that came, and whether it is the call's: not where it is empty and tried again."""


class EndpointSettings(Settings):
    """An OpenAI-compatible endpoint and how it is asked.

    Attributes:
        model: Its name there.
        base_url: Up to and with ``/v1``, mostly.
        key_env: The environment variable with the key; ``None`` for an endpoint that wants none.
        temperature: ``None`` leaves it to the endpoint, as some reasoning models want.
        max_tokens: Of an answer; ``None`` leaves it to the endpoint.
        extra: Further fields of the request, such as ``max_completion_tokens``, ``reasoning_effort`` or ``seed``.
        concurrency: Calls under way at one time.
        timeout: Seconds until a call counts as stalled.
        retries: Of a call after a rate limit, a stall, a lost connection, a server error or an empty answer.
        give_up_after: Stop when so many calls in a row have found no answer, all their retries included; an empty
            answer counts as none while no other has a text.
    """

    model: str = Field(min_length=1, description="name of the judge model at the endpoint")
    base_url: str = Field("https://api.openai.com/v1", description="OpenAI-compatible endpoint")
    key_env: str | None = Field("OPENAI_API_KEY", description="environment variable with the key; null for none")
    temperature: float | None = Field(0.0, ge=0, description="null leaves it to the endpoint")
    max_tokens: int | None = Field(1024, ge=1, description="most tokens of an answer; null leaves it to the endpoint")
    extra: dict[str, Any] = Field(default_factory=dict, description="further fields of the request")
    concurrency: int = Field(8, ge=1, description="calls under way at one time")
    timeout: float = Field(120.0, gt=0, description="seconds until a call counts as stalled")
    retries: int = Field(
        5, ge=0, description="of a call that was rate-limited, stalled, met a server error or an empty answer"
    )
    give_up_after: int = Field(16, ge=1, description="calls in a row without an answer after which to stop")

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"expected a URL that begins with http:// or https://, got {value!r}")
        return value.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _leaves_rest(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(_SET_APART & set(value)):
            raise ValueError(f"{name!r} cannot stand here" + ("" if name in ("stream", "n") else ": set it by itself"))
        return value

    def call(self, messages: Sequence[dict[str, str]]) -> Call:
        """Return the call that sends ``messages``."""
        stated = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        sampling = {name: value for name, value in stated.items() if value is not None}
        return Call(self.base_url, self.model, messages, sampling | self.extra)


def ask(
    calls: Sequence[Call],
    settings: EndpointSettings,
    on_answer: OnAnswer,
    on_failure: Callable[[Call, str], object],
    *,
    kept: Collection[Answer] = (),
) -> None:
    """Ask an endpoint, several calls at a time.

    Args:
        calls: To be sent.
        settings: Of the endpoint.
        on_answer: Called with each answer as it arrives.
        on_failure: Called with what went wrong for good in a single call, which stops nothing.
        kept: What the endpoint has answered to calls like these before.

    Raises:
        ConfigError: There is no key, the endpoint refuses what every call has in common (key, model, URL), it left
            ``give_up_after`` calls in a row without an answer, or it answered none at all. Calls under way are waited
            for first, as long as one may take.
    """
    if calls:
        _run(_Asker(settings, on_answer, on_failure, kept).ask(calls))


class _Asker:
    """One round of calls."""

    def __init__(
        self,
        settings: EndpointSettings,
        on_answer: OnAnswer,
        on_failure: Callable[[Call, str], object],
        kept: Collection[Answer],
    ) -> None:
        self.settings, self.on_answer, self.on_failure = settings, on_answer, on_failure
        self.answers, self.texts = bool(kept), any(not answer.is_empty for answer in kept)
        self.in_a_row, self.last = 0, ""
        self.error: ConfigError | None = None  # why it was given up

    async def ask(self, calls: Sequence[Call]) -> None:
        waiting, slots = iter(calls), min(self.settings.concurrency, len(calls))
        async with self._client() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    under_way = {group.create_task(self._ask_next(client, waiting)) for _ in range(slots)}
                    while under_way and self.error is None:
                        _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    if under_way:  # given up: what was sent is paid for
                        _, under_way = await asyncio.wait(under_way, timeout=self.settings.timeout)
                    for stalled in under_way:
                        stalled.cancel()
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None  # the first one cancelled the others
        if self.error is not None:
            raise self.error
        if not self.answers:
            raise self._error(f"none of {len(calls)} calls was answered; the last: {self.last}")

    async def _ask_next(self, client: openai.AsyncOpenAI, waiting: Iterator[Call]) -> None:
        """Ask one after the other, as long as there are any."""
        while self.error is None and (call := next(waiting, None)) is not None:
            await self._ask_one(client, call)

    def _client(self) -> openai.AsyncOpenAI:
        try:
            import openai
        except ImportError as error:
            raise ConfigError("a judge is asked through the package openai: pip install 'meetlm[judge]'") from error
        name = self.settings.key_env
        if name is not None and not os.environ.get(name):
            raise ConfigError(
                f"the environment variable {name} is not set; it should hold the key for {self.settings.base_url} "
                "(key_env names another variable; key_env=null if the endpoint wants no key)"
            )
        return openai.AsyncOpenAI(
            api_key=os.environ[name] if name else "none",
            base_url=self.settings.base_url,
            timeout=self.settings.timeout,
            max_retries=self.settings.retries,
        )

    async def _ask_one(self, client: openai.AsyncOpenAI, call: Call) -> None:
        import openai

        try:
            answer = await self._answer_to(client, call)
        except openai.APIStatusError as error:
            said = f"HTTP {error.status_code}: {_said(error)}"
            if error.status_code in _HOPELESS:
                self._give_up(f"{said} ({_HOPELESS[error.status_code]})")
            elif error.code == "insufficient_quota":
                self._give_up(said)
            else:
                # Where others are answered, a refusal is about this call alone: too long, or filtered.
                single = error.status_code < 500 and error.status_code != 429 and self.answers
                self._failed(call, said, count=not single)
        except openai.APITimeoutError:
            self._failed(call, f"no answer in {self.settings.timeout:g} s", count=True)
        except openai.APIConnectionError as error:
            self._failed(call, f"no connection: {error.__cause__ or error}", count=True)
        except (openai.APIError, ValueError) as error:
            self._failed(call, f"not a chat completion: {_clip(str(error))}", count=True)
        else:
            if answer is None:
                return
            self.answers = True
            self.on_answer(call, answer, True)
            if not answer.is_empty:
                self.texts, self.in_a_row = True, 0
            elif not self.texts:  # as with a refusal: where others have a text, this is about the call alone
                self._missed(f"an empty answer (finish_reason {answer.finish_reason}); {_EMPTY_KEPT}")

    async def _answer_to(self, client: openai.AsyncOpenAI, call: Call) -> Answer | None:
        """Return the answer; an empty one only where none but empty ones came, retries included.

        Returns:
            ``None`` where all was given up before the retries were used up.
        """
        for attempt in range(self.settings.retries):
            answer = await self._answer_once(client, call)
            if not answer.is_empty or answer.finish_reason in _FINAL:
                return answer
            self.on_answer(call, answer, False)
            if self.error is None:
                await asyncio.sleep(min(0.5 * 2**attempt, 8.0))
            if self.error is not None:  # another retry would be paid for in vain
                return None
        return await self._answer_once(client, call)

    async def _answer_once(self, client: openai.AsyncOpenAI, call: Call) -> Answer:
        found = await client.chat.completions.create(
            model=call.model, messages=cast(Any, call.messages), stream=False, extra_body=call.sampling
        )
        return _answer(found)

    def _failed(self, call: Call, why: str, *, count: bool) -> None:
        self.last = why
        self.on_failure(call, why)
        if count:
            self._missed(f"{why}; what was answered is kept, and the same command goes on from there")

    def _missed(self, why: str) -> None:
        """Count a call without an answer in it; give up after so many."""
        self.in_a_row += 1
        if self.in_a_row >= self.settings.give_up_after:
            self._give_up(f"{self.in_a_row} calls in a row found no answer (give_up_after), the last: {why}")

    def _give_up(self, why: str) -> None:
        self.error = self.error or self._error(why)

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"judge {self.settings.model!r} at {self.settings.base_url}: {what}")


def _answer(found: Any) -> Answer:
    """Read a response; servers that only resemble OpenAI's leave things out.

    Raises:
        ValueError: It is no chat completion.
    """
    choices: Any = getattr(found, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    text = getattr(message, "content", None) or getattr(message, "refusal", None) or ""
    if message is None or not isinstance(text, str):
        raise ValueError(found.to_json(indent=None, warnings=False) if hasattr(found, "to_json") else f"{found}")
    usage = getattr(found, "usage", None)
    return Answer(
        text=text,
        finish_reason=getattr(choices[0], "finish_reason", None),
        served_model=getattr(found, "model", None),
        prompt_tokens=getattr(usage, "prompt_tokens", None),
        completion_tokens=getattr(usage, "completion_tokens", None),
    )


def _said(error: openai.APIStatusError) -> str:
    """Return what an endpoint says of an error: OpenAI's message, or all that other servers send."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return _clip(str(message or error.response.text or error.message))


def _clip(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
