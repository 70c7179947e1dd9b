"""The sampler over a transformers model: batches of prompts, each row under its own level weights.

Rows that finish leave the batch. Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.prompt_format import PromptFormat
from meetlm.generation.rows import PackedRows, PaddedRows, Request, Rows, decoding_failure_reason
from meetlm.generation.sampling import Sampling, row_generator, sample_tokens
from meetlm.policy.loading import check_positions
from meetlm.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """What came of a request.

    Attributes:
        text: The completion, cut at EOS or a stop string and stripped.
        num_tokens: New tokens, the one that ended it included.
        finish: Why it ended: ``eos``, ``stop`` (a stop string) or ``length``.
    """

    text: str
    num_tokens: int
    finish: Literal["eos", "stop", "length"]


class Engine:
    """Generates with a policy.

    Args:
        policy: Its language model and control.
        prompt_format: Decodes; has the stop strings.
    """

    def __init__(self, policy: Policy, prompt_format: PromptFormat) -> None:
        self.policy, self.format = policy, prompt_format
        ends = policy.lm.generation_config.eos_token_id if policy.lm.generation_config else None
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        self._rows: type[Rows] = PaddedRows if decoding_failure_reason(policy) else PackedRows
        self._eos = torch.tensor(sorted({*ends, prompt_format.tokenizer.eos_token_id}), device=policy.device)

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        seed: int = 0,
        batch_size: int = 32,
        reporter: Reporter = SILENT,
    ) -> list[GeneratedText]:
        """Return a completion for each request, in order.

        Args:
            requests: Any number; they are batched by length.
            sampling: How.
            seed: Of all random streams.
            batch_size: Rows at once.
            reporter: Shows the number of requests that are finished.

        Raises:
            ConfigError: A prompt and its completion would not fit the model's positions.
        """
        results = dict(self.stream(requests, sampling, seed=seed, batch_size=batch_size, reporter=reporter))
        return [results[i] for i in range(len(requests))]

    @torch.no_grad()
    def stream(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        seed: int = 0,
        batch_size: int = 32,
        reporter: Reporter = SILENT,
    ) -> Iterator[tuple[int, GeneratedText]]:
        """Yield each request's place in the list and its completion as batches are done, the longest prompts first.

        Arguments and errors as in :meth:`generate`.
        """
        longest = max((len(r.ids) for r in requests), default=0)
        check_positions(self.policy.lm, longest + sampling.max_new_tokens, "the longest prompt with its completion")
        was_training = self.policy.training
        self.policy.eval()
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
        with reporter.progress("generate", total=len(requests), unit="completion") as progress:
            try:
                for start in range(0, len(order), batch_size):
                    rows = order[start : start + batch_size]
                    generators = [row_generator(seed, requests[i].stream) for i in rows]
                    with torch.autocast("cuda", torch.bfloat16, enabled=self.policy.device.type == "cuda"):
                        done = self._batch([requests[i] for i in rows], sampling, generators)
                    yield from zip(rows, done, strict=True)
                    progress.advance(len(rows))
            finally:
                self.policy.train(was_training)

    @torch.no_grad()
    def stream_text(self, request: Request, sampling: Sampling, *, seed: int = 0) -> Iterator[str]:
        """Yield one completion in pieces, as its tokens are sampled.

        Together the pieces are the text of :meth:`generate`, but for white space at its end.

        Raises:
            ConfigError: As of :meth:`generate`.
        """
        check_positions(self.policy.lm, len(request.ids) + sampling.max_new_tokens, "the prompt with its completion")
        self.policy.eval()
        generators = [row_generator(seed, request.stream)]
        num_held = max((len(stop) for stop in self.format.spec.stop), default=0)  # may be the start of a stop string
        ids: list[int] = []
        num_shown = 0
        with torch.autocast("cuda", torch.bfloat16, enabled=self.policy.device.type == "cuda"):
            rows = self._rows(self.policy, [request], sampling.max_new_tokens)
            logits = rows.start()
            while True:
                tokens = sample_tokens(logits, sampling, generators)
                ids.append(int(tokens))
                is_end = bool(torch.isin(tokens, self._eos)) or len(ids) == sampling.max_new_tokens
                is_end = is_end or self._stop_at(ids)
                if is_end:
                    finish: Literal["eos", "length"] = "eos" if bool(torch.isin(tokens, self._eos)) else "length"
                    yield self._finish(ids, finish).text[num_shown:]
                    return
                text = self.format.text(ids).lstrip()
                ready = text[: len(text) - num_held].rstrip("\ufffd").rstrip()  # no half of a character
                yield ready[num_shown:]
                num_shown = max(num_shown, len(ready))
                logits = rows.step(tokens)

    @torch.no_grad()
    def first_logits(self, requests: Sequence[Request]) -> Tensor:
        """Return the logits of the first new token of each request, batched together, [R, V] f32."""
        rows = self._rows(self.policy, requests, 1)
        logits = rows.start()
        return logits[[rows.order.index(row) for row in range(len(requests))]]

    def _batch(
        self, requests: Sequence[Request], sampling: Sampling, generators: list[torch.Generator]
    ) -> list[GeneratedText]:
        rows = self._rows(self.policy, requests, sampling.max_new_tokens)
        logits = rows.start()
        tokens: list[list[int]] = [[] for _ in requests]
        finish: dict[int, Literal["eos", "stop", "length"]] = {}
        for step in range(sampling.max_new_tokens):
            order = rows.order
            chosen = sample_tokens(logits, sampling, [generators[row] for row in order])
            ended = torch.isin(chosen, self._eos).tolist()
            for row, token, end in zip(order, chosen.tolist(), ended, strict=True):
                tokens[row].append(token)
                if end:
                    finish[row] = "eos"
                elif self._stop_at(tokens[row]):
                    finish[row] = "stop"
            done = [row for row in order if row in finish]
            if len(done) == len(order) or step == sampling.max_new_tokens - 1:
                break
            rows.drop(done)
            logits = rows.step(torch.tensor([tokens[row][-1] for row in rows.order], device=chosen.device))
        return [self._finish(ids, finish.get(row, "length")) for row, ids in enumerate(tokens)]

    def _stop_at(self, ids: list[int]) -> bool:
        """Whether a stop string has just appeared; a token is at least one character, so the tail is enough."""
        stops = self.format.spec.stop
        tail = self.format.text(ids[-max(map(len, stops)) - 4 :]) if stops else ""
        return any(stop in tail for stop in stops)

    def _finish(self, ids: list[int], finish: Literal["eos", "stop", "length"]) -> GeneratedText:
        text = self.format.text(ids[:-1] if finish == "eos" else ids)
        for stop in self.format.spec.stop:
            text = text.split(stop)[0]
        return GeneratedText(text.strip(), len(ids), finish)
