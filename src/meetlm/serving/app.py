"""The HTTP API: routes, responses, streams."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meetlm.config.errors import ConfigError
from meetlm.generation.session import Finish
from meetlm.run.aligned import Aligned
from meetlm.run.dial import scorer_by_name
from meetlm.serving.engine import Engine, GenerationError, Job, OverloadedError, Piece
from meetlm.serving.errors import APIError, add_handlers, overloaded
from meetlm.serving.feedback import FeedbackFile
from meetlm.serving.guard import Guard
from meetlm.serving.metrics import Metrics
from meetlm.serving.playground import build_router
from meetlm.serving.prepare import Prepared, Preparer
from meetlm.serving.protocol import ChatRequest, CompletionRequest
from meetlm.serving.responses import (
    ChatCompletion,
    ChatLogprobs,
    ErrorResponse,
    FinishReason,
    Health,
    Model,
    ModelList,
    TextCompletion,
    TextLogprobs,
    TokenLogprob,
    chat_logprobs,
    envelope,
    text_logprobs,
    usage,
)
from meetlm.serving.settings import ServingSettings

logger = logging.getLogger(__name__)
FINISH_REASONS: dict[Finish, FinishReason] = {"eos": "stop", "stop": "stop", "length": "length"}
"""OpenAI's reasons why a completion ended, by the session's."""
CLIENT_CLOSED_REQUEST = 499
"""Status in the metrics of requests whose client has gone."""
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}
"""What the OpenAPI document states about streamed responses."""


class EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        content: The events.
        timeout: A client that reads nothing for so many seconds is treated as gone.
        close: Called at the end, whatever happens.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], timeout: float, close: Callable[[], None]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._timeout, self._close = timeout, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._timeout):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            logger.warning("a client reads nothing: its request is cancelled")
        finally:
            self._close()


@dataclass(slots=True)
class _Choice:
    """A completion as far as it has been generated."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_tokens: int = 0

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        if piece.logprob is not None:
            self.logprobs.append(piece.logprob)
        if piece.completion is not None:
            self.finish_reason = FINISH_REASONS[piece.completion.finish]
            self.num_tokens = piece.completion.num_tokens


class Service:
    """Answers requests for completions.

    Args:
        preparer: Checks requests.
        engine: Generates.
        metrics: Counts.
        timeout: Largest number of seconds per request.
    """

    def __init__(self, preparer: Preparer, engine: Engine, metrics: Metrics, timeout: float) -> None:
        self._preparer, self._engine, self._metrics, self._timeout = preparer, engine, metrics, timeout
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    async def respond(self, request: Request, body: ChatRequest | CompletionRequest) -> Response:
        """Return the response to a request.

        Raises:
            APIError: The request is wrong, too many are waiting, or it takes too long.
        """
        start = time.monotonic()
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._preparing, self._preparer.prepare, body)
        try:
            job = self._engine.submit(prepared.requests)
        except OverloadedError as error:
            raise overloaded(error) from error
        self._metrics.prompt_tokens.inc(prepared.num_prompt_tokens)
        if body.stream:
            return EventStream(self._events(job, body, prepared, start), self._timeout, job.cancel)
        try:
            return await until_disconnect(request, self._whole(job, body, prepared, start))
        finally:
            job.cancel()

    async def _pieces(self, job: Job, start: float) -> AsyncIterator[Piece]:
        """Yield the pieces of a job.

        Raises:
            APIError: The job takes too long, or the model failed.
        """
        is_first = True
        try:
            async for piece in job.pieces(asyncio.get_running_loop().time() + self._timeout):
                if is_first:
                    self._metrics.first_token_seconds.observe(time.monotonic() - start)
                    is_first = False
                yield piece
        except TimeoutError:
            raise APIError(
                408,
                f"the request took longer than {self._timeout:g} seconds; send fewer at once, or lower max_tokens",
                code="timeout",
                headers={"x-should-retry": "false"},
            ) from None
        except GenerationError as error:
            raise APIError(500, str(error)) from error
        self._metrics.request_seconds.observe(time.monotonic() - start)

    async def _whole(
        self, job: Job, body: ChatRequest | CompletionRequest, prepared: Prepared, start: float
    ) -> JSONResponse:
        choices = [_Choice() for _ in job.requests]
        async for piece in self._pieces(job, start):
            choices[piece.index].add(piece)
        is_chat = isinstance(body, ChatRequest)
        content = {
            **envelope("chat.completion" if is_chat else "text_completion", body.model),
            "choices": [
                {
                    "index": index,
                    **({"message": {"role": "assistant", "content": c.text}} if is_chat else {"text": c.text}),
                    "logprobs": _logprobs(body, c.logprobs),
                    "finish_reason": c.finish_reason,
                }
                for index, c in enumerate(choices)
            ],
            "usage": usage(prepared.num_prompt_tokens, sum(choice.num_tokens for choice in choices)),
        }
        return JSONResponse(content | _warning(prepared))

    async def _events(
        self, job: Job, body: ChatRequest | CompletionRequest, prepared: Prepared, start: float
    ) -> AsyncIterator[str]:
        """Yield the chunks of a streamed response as server-sent events."""
        is_chat = isinstance(body, ChatRequest)
        shared = envelope("chat.completion.chunk" if is_chat else "text_completion", body.model)

        def event(choices: list[dict[str, Any]], **more: Any) -> str:
            return _event({**shared, "choices": choices, **more})

        def choice(index: int, text: str | None, logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
            content = {"delta": {} if text is None else {"content": text}} if is_chat else {"text": text or ""}
            return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

        choices = [_Choice() for _ in job.requests]
        try:
            if is_chat:
                opening = [
                    {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                    for index in range(len(choices))
                ]
                yield event(opening, **_warning(prepared))
            elif prepared.warning:
                yield event([], **_warning(prepared))
            async for piece in self._pieces(job, start):
                state = choices[piece.index]
                state.add(piece)
                if piece.text or (state.finish_reason is not None and state.logprobs):
                    logprobs = _logprobs(body, state.logprobs, len(state.text) - len(piece.text))
                    state.logprobs = []  # those of tokens whose text is held back come with the text
                    yield event([choice(piece.index, piece.text, logprobs, None)])
                if state.finish_reason is not None:
                    yield event([choice(piece.index, None, None, state.finish_reason)])
            if body.stream_options.include_usage:
                num_tokens = sum(state.num_tokens for state in choices)
                yield event([], usage=usage(prepared.num_prompt_tokens, num_tokens))
            yield "data: [DONE]\n\n"
        except APIError as error:
            yield _event(error.to_dict())


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _warning(prepared: Prepared) -> dict[str, str]:
    return {"warning": prepared.warning} if prepared.warning else {}


def _logprobs(
    body: ChatRequest | CompletionRequest, tokens: list[TokenLogprob], offset: int = 0
) -> ChatLogprobs | TextLogprobs | None:
    if body.num_top_logprobs is None:
        return None
    return chat_logprobs(tokens) if isinstance(body, ChatRequest) else text_logprobs(tokens, offset)


async def until_disconnect(request: Request, response: Coroutine[Any, Any, Response]) -> Response:
    """Return a response, or leave off where its client has gone."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(response), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        working.cancel()
        leaving.cancel()


def build_app(aligned: Aligned, name: str, settings: ServingSettings, feedback: Path) -> ASGIApp:
    """Return the server of a run as an ASGI application.

    Args:
        aligned: The run.
        name: Its model name.
        settings: How it is served.
        feedback: File that the playground appends rated replies to.

    Raises:
        ConfigError: The environment variable of the API key is not set, or a scorer cannot be loaded.
    """
    api_key = None
    if settings.api_key_env is not None:
        api_key = os.environ.get(settings.api_key_env)
        if not api_key:
            raise ConfigError(f"--api-key-env: the environment variable {settings.api_key_env} is not set")
    scorers = [scorer_by_name(scorer) for scorer in settings.scorers]
    metrics = Metrics()
    preparer = Preparer(aligned, name, settings)
    engine = Engine(aligned, settings.batch_size, settings.queue, metrics)
    service = Service(preparer, engine, metrics, settings.timeout)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop()

    app = FastAPI(
        title="meetlm",
        description="OpenAI-compatible API of a run with levels",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse, "description": "The request is refused"}},
        max_body_size=settings.max_body,
    )
    add_handlers(app)

    def model(identifier: str) -> Model:
        return {"id": identifier, "object": "model", "created": started, "owned_by": "meetlm"}

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=EVENTS)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Reply to a conversation."""
        return await service.respond(request, body)

    @app.post("/v1/completions", response_model=TextCompletion, responses=EVENTS)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Reply to prompts of text, formatted as the prompts that the run was trained on."""
        return await service.respond(request, body)

    @app.get("/v1/models", response_model=ModelList)
    async def list_models() -> JSONResponse:
        """List the run at its default level and at each level; mixes are not listed."""
        return JSONResponse({"object": "list", "data": [model(identifier) for identifier in preparer.models]})

    @app.get("/v1/models/{identifier:path}", response_model=Model)
    async def show_model(identifier: str) -> JSONResponse:
        """Return one of the models."""
        if identifier not in preparer.models:
            raise APIError(404, f"unknown model {identifier!r}", param="model", code="model_not_found")
        return JSONResponse(model(identifier))

    @app.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        """Return whether the server can generate."""
        return JSONResponse({"status": "ok"}) if engine.is_alive else JSONResponse({"status": "failed"}, 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Return metrics in Prometheus's format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.include_router(build_router(preparer.aligned, name, settings, engine, scorers, FeedbackFile(feedback)))
    for body in (ChatRequest, CompletionRequest):
        app.openapi()["components"]["schemas"][body.__name__]["properties"]["model"]["examples"] = preparer.models
    guard = Guard(app, settings, api_key, metrics)
    if not settings.allowed_origins:
        return guard
    headers = ["Authorization", "Content-Type"]
    return CORSMiddleware(guard, settings.allowed_origins, allow_methods=["GET", "POST"], allow_headers=headers)
