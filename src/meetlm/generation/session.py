"""A generation session: requests join and leave at any step, and all that are running share each forward pass.

``add`` a request, call ``step`` until nothing is left, ``cancel`` what is no longer wanted. Offline generation and
streaming are loops over a session; a server drives one in the same way. A request may have several branches, such as
the two of guidance: their rows take the same tokens, and their logits are added before the next token is sampled.

R rows, Q requests, V vocabulary size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.prompt_format import PromptFormat
from meetlm.generation.decoding import Branch, decoder_of
from meetlm.generation.sampling import row_generator, sample_tokens
from meetlm.generation.settings import Sampling
from meetlm.generation.text import IncrementalDecoder, ends_in_stop, num_matching, stop_strings
from meetlm.policy.loading import check_positions, end_tokens
from meetlm.policy.policy import Policy

Finish = Literal["eos", "stop", "length"]
"""Why a completion ended: with EOS, with a stop string, or at the largest number of new tokens."""

BATCH_SIZE = 32
"""Default for the largest number of rows per forward pass."""


@dataclass(frozen=True, slots=True)
class Request:
    """A completion to generate.

    Attributes:
        branches: Prompts under level weights; the next token is sampled from the sum of their logits, each times its
            coefficient.
        sampling: Temperature, nucleus, length.
        seed: Seed of its random stream.
        stream: Number of its random stream: requests of one seed and different streams are independent.
        stop: Strings at which the completion ends, besides those of the prompt format.
        logprobs: Whether to return the log-prob of each token, before temperature and nucleus.
        num_top_logprobs: Number of most likely tokens whose log-probs each event has; requires ``logprobs``.
    """

    branches: tuple[Branch, ...]
    sampling: Sampling
    seed: int = 0
    stream: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    num_top_logprobs: int = 0

    @property
    def length(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(branch.ids) for branch in self.branches)


def guided(branch: Branch, against: Branch, strength: float) -> tuple[Branch, ...]:
    """Return the branches of guidance, ℓ + s·(ℓ − ℓ_against); with strength s = 0, ``branch`` alone."""
    if strength == 0:
        return (branch,)
    return Branch(branch.ids, branch.weights, 1 + strength), Branch(against.ids, against.weights, -strength)


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """The completion of a request.

    Attributes:
        text: The completion, cut at EOS or a stop string and stripped.
        ids: New tokens, EOS or the stop string included.
        finish: Why it ended.
        logprobs: Log-prob of each token in nats, if requested.
    """

    text: str
    ids: tuple[int, ...]
    finish: Finish
    logprobs: tuple[float, ...] | None = None

    @property
    def num_tokens(self) -> int:
        """Number of new tokens."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Event:
    """A new token of a request.

    Attributes:
        request: Id of the request.
        token: The token.
        logprob: Its log-prob in nats, if requested.
        completion: The completion, if this token ends it.
        top_logprobs: The most likely tokens and their log-probs, the likeliest first, if requested.
    """

    request: int
    token: int
    logprob: float | None
    completion: GeneratedText | None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False, slots=True)
class _Running:
    """A request whose prompt has been read.

    Attributes:
        number: Id of the request.
        request: The request.
        rows: The decoder's rows of its branches.
        generator: Its random stream.
        ids: Its new tokens.
        logprobs: Their log-probs, if requested.
    """

    number: int
    request: Request
    rows: list[int]
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Session:
    """Generates completions of requests with one policy.

    Args:
        policy: Language model and control.
        prompt_format: Decodes ids and defines the stop strings.
        batch_size: Largest number of rows per forward pass; a request has a row per branch.
    """

    def __init__(self, policy: Policy, prompt_format: PromptFormat, batch_size: int = BATCH_SIZE) -> None:
        self.policy, self.format, self._batch_size = policy, prompt_format, batch_size
        self._eos = end_tokens(policy.lm, prompt_format.tokenizer)
        with self._inference():
            self._decoder = decoder_of(policy)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._running: dict[int, _Running] = {}  # by row of the decoder
        self._requests, self._rows = count(), count()

    def add(self, request: Request) -> int:
        """Queue a request and return its id.

        Raises:
            ConfigError: The prompt and its completion may be longer than the model's positions.
        """
        tokens = request.length + request.sampling.max_new_tokens
        check_positions(self.policy.lm, tokens, "the prompt with its completion")
        number = next(self._requests)
        self._waiting.append((number, request))
        return number

    def cancel(self, number: int) -> None:
        """Remove a request that has not ended; an id of another request is ignored."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] != number)
        self._drop([row for row, running in self._running.items() if running.number == number])

    def step(self) -> list[Event]:
        """Generate one token of each running request; requests that wait join if there is room.

        Returns:
            An event per running request; none if no request is left.
        """
        with self._inference():
            rows, logits = self._next_logits()
            if not rows:
                return []
            requests, logits = self._combine(rows, logits)
            tokens = _sample(logits, requests)
            logprobs = _logprobs(logits, tokens, requests)
        events = []
        for running, token, (logprob, top_logprobs) in zip(requests, tokens, logprobs, strict=True):
            running.ids.append(token)
            if logprob is not None:
                running.logprobs.append(logprob)
            finish = self._finish(running)
            completion = None if finish is None else self._completion(running, finish)
            events.append(Event(running.number, token, logprob, completion, top_logprobs))
        ended = {event.request for event in events if event.completion is not None}
        self._drop([row for row in rows if self._running[row].number in ended])
        return events

    def iter_completions(
        self, requests: Sequence[Request], *, reporter: Reporter = SILENT
    ) -> Iterator[tuple[int, GeneratedText]]:
        """Yield the index of each request and its completion, as they end; the longest prompts join first.

        Raises:
            ConfigError: A prompt and its completion may be longer than the model's positions.
        """
        order = sorted(range(len(requests)), key=lambda index: -requests[index].length)
        indices = {self.add(requests[index]): index for index in order}
        try:
            with reporter.progress("generate", total=len(requests), unit="completion") as progress:
                while indices:
                    for event in self.step():
                        if event.completion is not None:
                            yield indices.pop(event.request), event.completion
                            progress.advance()
        finally:
            for number in indices:
                self.cancel(number)

    def complete(self, requests: Sequence[Request], *, reporter: Reporter = SILENT) -> list[GeneratedText]:
        """Return the completion of each request, in order; errors as in :meth:`iter_completions`."""
        completions = dict(self.iter_completions(requests, reporter=reporter))
        return [completions[index] for index in range(len(requests))]

    def stream(self, request: Request) -> Iterator[str]:
        """Yield a completion in pieces, as its tokens are sampled.

        Together the pieces are the text of :meth:`complete`.

        Raises:
            ConfigError: The prompt and its completion may be longer than the model's positions.
        """
        number = self.add(request)
        text = TextStream(self.format, request.stop)
        try:
            while True:
                for event in self.step():
                    if event.request == number:
                        yield text.add(event)
                        if event.completion is not None:
                            return
        finally:
            self.cancel(number)

    def _next_logits(self) -> tuple[list[int], Tensor]:
        """Return the rows that are running, in any order, and the logits of their next tokens, [R, V]."""
        rows = self._decoder.rows
        parts = []
        if rows:
            tokens = [self._running[row].ids[-1] for row in rows]
            parts.append(self._decoder.step(torch.tensor(tokens, device=self.policy.device)))
        joining: dict[int, Branch] = {}
        for running in self._joining(len(rows)):
            joining |= zip(running.rows, running.request.branches, strict=True)
            self._running |= dict.fromkeys(running.rows, running)
        if joining:
            new_tokens = {row: self._running[row].request.sampling.max_new_tokens for row in joining}
            parts.append(self._decoder.add(joining, new_tokens))
        return [*rows, *joining], torch.cat(parts) if len(parts) > 1 else parts[0] if parts else torch.empty(0)

    def _joining(self, num_rows: int) -> Iterator[_Running]:
        """Yield the requests that join now; several at a time, since prompts read together can share their start."""
        num_free = self._batch_size - num_rows
        num_waiting = sum(len(request.branches) for _, request in self._waiting)
        if num_rows and num_free < min(num_waiting, self._batch_size // 4):
            return
        is_first = num_rows == 0
        while self._waiting and (is_first or len(self._waiting[0][1].branches) <= num_free):
            number, request = self._waiting.popleft()
            num_free -= len(request.branches)
            is_first = False
            rows = [next(self._rows) for _ in request.branches]
            yield _Running(number, request, rows, row_generator(request.seed, request.stream))

    def _combine(self, rows: Sequence[int], logits: Tensor) -> tuple[list[_Running], Tensor]:
        """Return the running requests and the logits [Q, V] of each, summed over its branches."""
        requests = list(dict.fromkeys(self._running[row] for row in rows))
        coefficients = {
            row: branch.coefficient
            for running in requests
            for row, branch in zip(running.rows, running.request.branches, strict=True)
        }
        if len(requests) == len(rows) and all(coefficient == 1 for coefficient in coefficients.values()):
            return requests, logits
        indices = {running: index for index, running in enumerate(requests)}
        owner = torch.tensor([indices[self._running[row]] for row in rows], device=logits.device)
        factors = torch.tensor([[coefficients[row]] for row in rows], device=logits.device)
        return requests, logits.new_zeros(len(requests), logits.shape[1]).index_add(0, owner, logits * factors)

    def _finish(self, running: _Running) -> Finish | None:
        """Return why a completion has ended; ``None`` if it goes on."""
        if running.ids[-1] in self._eos:
            return "eos"
        if ends_in_stop(self.format, running.ids, stop_strings(self.format, running.request.stop)):
            return "stop"
        return "length" if len(running.ids) == running.request.sampling.max_new_tokens else None

    def _completion(self, running: _Running, finish: Finish) -> GeneratedText:
        text = self.format.decode(running.ids[:-1] if finish == "eos" else running.ids)
        for stop in stop_strings(self.format, running.request.stop):
            text = text.split(stop)[0]
        logprobs = tuple(running.logprobs) if running.request.logprobs else None
        return GeneratedText(text.strip(), tuple(running.ids), finish, logprobs)

    def _drop(self, rows: Sequence[int]) -> None:
        self._decoder.drop(rows)
        for row in rows:
            del self._running[row]

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Evaluate without gradients; on CUDA under bf16 autocast."""
        was_training = self.policy.training
        if was_training:
            self.policy.eval()
        try:
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=self.policy.device.type == "cuda"):
                yield
        finally:
            if was_training:
                self.policy.train()


class TextStream:
    """Turns the events of one request into pieces of text.

    A piece is held back while it may be the start of a stop string or of a character, or end in white space.

    Args:
        prompt_format: As in :class:`Session`.
        stop: As in :class:`Request`.
    """

    def __init__(self, prompt_format: PromptFormat, stop: tuple[str, ...] = ()) -> None:
        self._decoder = IncrementalDecoder(prompt_format)
        self._stops = stop_strings(prompt_format, stop)
        self._num_returned = 0

    def add(self, event: Event) -> str:
        """Return the text that an event adds; may be empty."""
        if event.completion is not None:
            return event.completion.text[self._num_returned :]
        text = self._decoder.add(event.token).lstrip()
        num_held = max((num_matching(text, stop) for stop in self._stops), default=0)
        ready = text[: len(text) - num_held].rstrip()
        piece = ready[self._num_returned :]
        self._num_returned = max(self._num_returned, len(ready))
        return piece


def _sample(logits: Tensor, requests: Sequence[_Running]) -> list[int]:
    """Return the next token of each request; requests with the same settings are sampled together."""
    groups: dict[tuple[float, float], list[int]] = {}
    for index, running in enumerate(requests):
        sampling = running.request.sampling
        groups.setdefault((sampling.temperature, sampling.top_p), []).append(index)
    tokens = [0] * len(requests)
    for indices in groups.values():
        sampled = sample_tokens(
            logits if len(groups) == 1 else logits[indices],
            requests[indices[0]].request.sampling,
            [requests[index].generator for index in indices],
        )
        for index, token in zip(indices, sampled.tolist(), strict=True):
            tokens[index] = token
    return tokens


def _logprobs(
    logits: Tensor, tokens: Sequence[int], requests: Sequence[_Running]
) -> list[tuple[float | None, tuple[tuple[int, float], ...]]]:
    """Return the log-prob of each token in nats, and of the most likely tokens; ``None`` if it is not requested."""
    results: list[tuple[float | None, tuple[tuple[int, float], ...]]] = [(None, ())] * len(requests)
    indices = [index for index, running in enumerate(requests) if running.request.logprobs]
    if not indices:
        return results
    logprobs = logits[indices].log_softmax(dim=-1)
    sampled = logprobs.gather(1, torch.tensor([[tokens[index]] for index in indices], device=logits.device))[:, 0]
    num_top = [requests[index].request.num_top_logprobs for index in indices]
    top = logprobs.topk(min(max(num_top), logprobs.shape[1]), dim=-1)
    rows = zip(indices, num_top, sampled.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    for index, num, logprob, top_tokens, values in rows:
        results[index] = logprob, tuple(zip(top_tokens[:num], values[:num], strict=True))
    return results
