"""The worker thread that generates: one session, whose batch all requests of the server join and leave at any step.

The event loop submits jobs and receives pieces of text; only the worker uses the model. A job is cancelled where its
client has gone, and its rows are free from the next step on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

from meetlm.config.errors import MeetError
from meetlm.config.process import release_freed_memory
from meetlm.generation.session import Event, GeneratedText, Request, Session, TextStream
from meetlm.run.aligned import Aligned
from meetlm.serving.metrics import Metrics
from meetlm.serving.responses import TokenLogprob, finite

T = TypeVar("T")
logger = logging.getLogger(__name__)
SMOOTHING = 0.1
"""Share of the newest completion in the running mean of the seconds per completion."""
RELEASE_SECONDS = 10.0
"""Seconds of work after which freed memory returns to the system: requests of all sizes leave gaps that add up."""


class OverloadedError(Exception):
    """Too many completions wait.

    Attributes:
        retry_after: Seconds until there is room, estimated.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} seconds")
        self.retry_after = retry_after


class GenerationError(Exception):
    """The model failed; the log has the reason."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step adds to a completion.

    Attributes:
        index: Index of the completion in its job.
        text: New text; may be empty.
        logprob: The new token with its log-prob, if requested; not for the token that ends the text.
        completion: The completion, once it has ended.
    """

    index: int
    text: str
    logprob: TokenLogprob | None
    completion: GeneratedText | None


class Job:
    """Completions that were submitted together, such as the n completions of a prompt, which is read once."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._engine, self._unfinished = engine, set(range(len(requests)))

    async def pieces(self, deadline: float) -> AsyncIterator[Piece]:
        """Yield the pieces of all completions.

        Args:
            deadline: Time of the event loop at which to give up.

        Raises:
            TimeoutError: The deadline has passed.
            GenerationError: The model failed.
        """
        while self._unfinished:
            async with asyncio.timeout_at(deadline):
                piece = await self.queue.get()
            if isinstance(piece, Exception):
                raise piece
            if piece.completion is not None:
                self._unfinished.discard(piece.index)
                self._engine.release(1)
            yield piece

    def cancel(self) -> None:
        """Remove the completions that have not ended; call this when the pieces are no longer read."""
        if self._unfinished:
            self._engine.release(len(self._unfinished))
            self._unfinished.clear()
            self._engine.remove(self)


@dataclass(slots=True)
class _Running:
    """A completion in the session.

    Attributes:
        job: Its job.
        index: Its index in the job.
        text: Turns its events into text.
    """

    job: Job
    index: int
    text: TextStream


class Engine:
    """Generates for all requests of a server in one batch.

    Args:
        aligned: The run.
        batch_size: Largest number of rows per forward pass.
        queue: Largest number of completions that wait.
        metrics: Counts tokens and completions.
    """

    def __init__(self, aligned: Aligned, batch_size: int, queue: int, metrics: Metrics) -> None:
        self.aligned, self._batch_size, self._queue, self._metrics = aligned, batch_size, queue, metrics
        self._num_active = 0  # completions submitted and not ended; of the event loop
        self._seconds = 1.0  # per completion
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="generation", daemon=True)
        self._session = Session(aligned.policy, aligned.format, batch_size)
        self._running: dict[int, _Running] = {}  # by id in the session; of the worker
        metrics.active.set_function(lambda: self._num_active)

    def start(self) -> None:
        """Start the worker; call this in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the worker after its current step."""
        self._commands.put(None)
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the worker runs."""
        return self._thread.is_alive()

    def submit(self, requests: Sequence[Request]) -> Job:
        """Queue completions.

        Raises:
            OverloadedError: Too many completions wait.
        """
        self._admit(len(requests))
        job = Job(self, requests)
        self._commands.put(lambda: self._add(job))
        return job

    async def call(self, function: Callable[[], T]) -> T:
        """Return the result of a function that uses the model, called between two steps.

        Raises:
            OverloadedError: Too many completions wait.
        """
        self._admit(1)
        result: asyncio.Future[T] = self._loop.create_future()

        def settle(value: T | None, error: Exception | None) -> None:
            if not result.done():  # the client may have gone
                result.set_exception(error) if error is not None else result.set_result(value)  # type: ignore[arg-type]

        def command() -> None:
            value, error = None, None
            try:
                if not result.cancelled():
                    value = function()
            except Exception as raised:
                error = raised
            self._loop.call_soon_threadsafe(settle, value, error)

        self._commands.put(command)
        try:
            return await result
        finally:
            self.release(1)

    def release(self, count: int) -> None:
        """Record that completions have ended."""
        self._num_active -= count

    def remove(self, job: Job) -> None:
        """Remove the completions of a job from the session."""
        self._commands.put(lambda: self._cancel(job))

    def _admit(self, count: int) -> None:
        if self._num_active + count > self._batch_size + self._queue:
            rounds = math.ceil((self._num_active + count) / self._batch_size) - self._queue / self._batch_size
            raise OverloadedError(max(1, min(60, math.ceil(rounds * self._seconds))))
        self._num_active += count

    def _work(self) -> None:
        """Carry out commands, and step while there are completions to generate."""
        released = time.monotonic()
        while True:
            if time.monotonic() - released > RELEASE_SECONDS:
                release_freed_memory()
                released = time.monotonic()
            try:
                command = self._commands.get(block=not self._running)
            except Empty:
                self._step()
                continue
            if command is None:
                return
            command()

    def _add(self, job: Job) -> None:
        for index, request in enumerate(job.requests):
            try:
                number = self._session.add(request)
            except MeetError as error:  # a request that was prepared for another model
                self._loop.call_soon_threadsafe(job.queue.put_nowait, error)
                return
            self._running[number] = _Running(job, index, TextStream(self.aligned.format, request.stop))

    def _cancel(self, job: Job) -> None:
        for number in [number for number, running in self._running.items() if running.job is job]:
            self._session.cancel(number)
            del self._running[number]
        if not self._running:
            self._metrics.running.set(0)

    def _step(self) -> None:
        start = time.monotonic()
        try:
            events = self._session.step()
        except Exception:
            logger.exception("generation failed; the completions in progress are lost")
            jobs = {id(running.job): running.job for running in self._running.values()}
            self._running.clear()
            self._session = Session(self.aligned.policy, self.aligned.format, self._batch_size)
            error = GenerationError("generation failed; the log of the server has the reason")
            self._loop.call_soon_threadsafe(_deliver, [(job, error) for job in jobs.values()])
            return
        seconds = time.monotonic() - start
        self._metrics.step_seconds.observe(seconds)
        for event in events:
            if event.completion is not None:
                self._seconds += SMOOTHING * (event.completion.num_tokens * seconds - self._seconds)
        self._metrics.generated_tokens.inc(len(events))
        self._metrics.running.set(sum(event.completion is None for event in events))
        self._loop.call_soon_threadsafe(_deliver, [self._piece(event) for event in events])

    def _piece(self, event: Event) -> tuple[Job, Piece]:
        running = self._running[event.request]
        if event.completion is not None:
            del self._running[event.request]
        logprob = None
        if event.logprob is not None and not (event.completion and event.completion.finish == "eos"):
            decode = self.aligned.format.tokenizer.decode
            top = tuple((str(decode([token])), finite(value)) for token, value in event.top_logprobs)
            logprob = TokenLogprob(token=str(decode([event.token])), logprob=finite(event.logprob), top=top)
        return running.job, Piece(running.index, running.text.add(event), logprob, event.completion)


def _deliver(pieces: Sequence[tuple[Job, Piece | Exception]]) -> None:
    for job, piece in pieces:
        job.queue.put_nowait(piece)
