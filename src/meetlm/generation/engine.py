"""The sampler over a transformers model: batches of prompts, each row with its own level weights.

Rows that are finished leave the batch. R rows, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.prompt_format import PromptFormat
from meetlm.generation.decoding import Decoder, PackedDecoder, PaddedDecoder, Request, decoding_failure_reason
from meetlm.generation.sampling import row_generator, sample_tokens
from meetlm.generation.settings import Sampling
from meetlm.policy.loading import check_positions
from meetlm.policy.policy import Policy

Finish = Literal["eos", "stop", "length"]
"""Why a completion ended: with EOS, with a stop string, or at the largest number of new tokens."""


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """The completion of a request.

    Attributes:
        text: The completion, cut at EOS or a stop string and stripped.
        num_tokens: New tokens, EOS or the stop string included.
        finish: Why it ended.
    """

    text: str
    num_tokens: int
    finish: Finish


class Engine:
    """Generates completions with a policy.

    Args:
        policy: Language model and control.
        prompt_format: Decodes ids and defines the stop strings.
    """

    def __init__(self, policy: Policy, prompt_format: PromptFormat) -> None:
        self.policy, self.format = policy, prompt_format
        eos = policy.lm.generation_config.eos_token_id if policy.lm.generation_config else None
        eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self._decoder: type[Decoder] = PaddedDecoder if decoding_failure_reason(policy) else PackedDecoder
        self._eos = torch.tensor(sorted({*eos_ids, prompt_format.tokenizer.eos_token_id}), device=policy.device)

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        seed: int = 0,
        batch_size: int = 32,
        reporter: Reporter = SILENT,
    ) -> list[GeneratedText]:
        """Return the completion of each request, in order; arguments and errors as in :meth:`iter_completions`."""
        results = dict(self.iter_completions(requests, sampling, seed=seed, batch_size=batch_size, reporter=reporter))
        return [results[i] for i in range(len(requests))]

    @torch.no_grad()
    def iter_completions(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        seed: int = 0,
        batch_size: int = 32,
        reporter: Reporter = SILENT,
    ) -> Iterator[tuple[int, GeneratedText]]:
        """Yield the index of each request and its completion, batch by batch, the longest prompts first.

        Args:
            requests: Any number of requests; they are batched by length.
            sampling: Temperature, nucleus, length.
            seed: Seed of all random streams.
            batch_size: Rows per batch.
            reporter: Shows the progress.

        Raises:
            ConfigError: A prompt and its completion may be longer than the model's positions.
        """
        longest = max((len(request.ids) for request in requests), default=0)
        check_positions(self.policy.lm, longest + sampling.max_new_tokens, "the longest prompt with its completion")
        was_training = self.policy.training
        self.policy.eval()
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
        try:
            with reporter.progress("generate", total=len(requests), unit="completion") as progress:
                for start in range(0, len(order), batch_size):
                    rows = order[start : start + batch_size]
                    generators = [row_generator(seed, requests[i].stream) for i in rows]
                    with torch.autocast("cuda", torch.bfloat16, enabled=self.policy.device.type == "cuda"):
                        completions = self._generate_batch([requests[i] for i in rows], sampling, generators)
                    yield from zip(rows, completions, strict=True)
                    progress.advance(len(rows))
        finally:
            self.policy.train(was_training)

    @torch.no_grad()
    def stream(self, request: Request, sampling: Sampling, *, seed: int = 0) -> Iterator[str]:
        """Yield one completion in pieces, as its tokens are sampled.

        Together the pieces are the text of :meth:`generate`, apart from white space at its end.

        Raises:
            ConfigError: The prompt and its completion may be longer than the model's positions.
        """
        check_positions(self.policy.lm, len(request.ids) + sampling.max_new_tokens, "the prompt with its completion")
        self.policy.eval()
        generators = [row_generator(seed, request.stream)]
        num_held = max((len(stop) for stop in self.format.spec.stop), default=0)  # may be the start of a stop string
        ids: list[int] = []
        num_yielded = 0
        with torch.autocast("cuda", torch.bfloat16, enabled=self.policy.device.type == "cuda"):
            decoder = self._decoder(self.policy, [request], sampling.max_new_tokens)
            logits = decoder.prefill()
            while True:
                tokens = sample_tokens(logits, sampling, generators)
                ids.append(int(tokens))
                is_eos = bool(torch.isin(tokens, self._eos))
                if is_eos or len(ids) == sampling.max_new_tokens or self._ends_in_stop(ids):
                    yield self._generated_text(ids, "eos" if is_eos else "length").text[num_yielded:]
                    return
                text = self.format.decode(ids).lstrip()
                ready = text[: len(text) - num_held].rstrip("\ufffd").rstrip()  # no incomplete character
                yield ready[num_yielded:]
                num_yielded = max(num_yielded, len(ready))
                logits = decoder.step(tokens)

    @torch.no_grad()
    def first_logits(self, requests: Sequence[Request]) -> Tensor:
        """Return the logits of the first new token of each request, computed in one batch, [R, V] f32."""
        decoder = self._decoder(self.policy, requests, 1)
        logits = decoder.prefill()
        return logits[[decoder.order.index(row) for row in range(len(requests))]]

    def _generate_batch(
        self, requests: Sequence[Request], sampling: Sampling, generators: list[torch.Generator]
    ) -> list[GeneratedText]:
        decoder = self._decoder(self.policy, requests, sampling.max_new_tokens)
        logits = decoder.prefill()
        ids: list[list[int]] = [[] for _ in requests]
        finish: dict[int, Finish] = {}
        for step in range(sampling.max_new_tokens):
            order = decoder.order
            tokens = sample_tokens(logits, sampling, [generators[row] for row in order])
            is_eos = torch.isin(tokens, self._eos).tolist()
            for row, token, ends in zip(order, tokens.tolist(), is_eos, strict=True):
                ids[row].append(token)
                if ends:
                    finish[row] = "eos"
                elif self._ends_in_stop(ids[row]):
                    finish[row] = "stop"
            finished = [row for row in order if row in finish]
            if len(finished) == len(order) or step == sampling.max_new_tokens - 1:
                break
            decoder.drop(finished)
            logits = decoder.step(torch.tensor([ids[row][-1] for row in decoder.order], device=tokens.device))
        return [self._generated_text(row_ids, finish.get(row, "length")) for row, row_ids in enumerate(ids)]

    def _ends_in_stop(self, ids: list[int]) -> bool:
        """Whether a stop string has just appeared; a token is at least one character, so the tail is enough."""
        stops = self.format.spec.stop
        tail = self.format.decode(ids[-max(map(len, stops)) - 4 :]) if stops else ""
        return any(stop in tail for stop in stops)

    def _generated_text(self, ids: list[int], finish: Finish) -> GeneratedText:
        text = self.format.decode(ids[:-1] if finish == "eos" else ids)
        for stop in self.format.spec.stop:
            text = text.split(stop)[0]
        return GeneratedText(text.strip(), len(ids), finish)
