"""The sampler over a transformers model: batches of prompts, each row under its own level weights.

Rows stand right-aligned ([pad, P, x]: the control is next to its query, unlike PEFT's [P, pad, x]); rows that finish
leave the batch. Shapes: R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from meetlm.data.prompt_format import PromptFormat
from meetlm.generation.sampling import Sampling, choose, row_generator
from meetlm.policy.loading import check_positions
from meetlm.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue.

    Attributes:
        ids: Control slot and prompt.
        weights: Level weights [K].
        stream: Number of its random stream.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    stream: int


@dataclass(frozen=True, slots=True)
class Generated:
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
        self._eos = torch.tensor(sorted({*ends, prompt_format.tokenizer.eos_token_id}), device=policy.device)

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        seed: int = 0,
        batch_size: int = 32,
        on_done: Callable[[int], Any] | None = None,
    ) -> list[Generated]:
        """Return a completion for each request, in order.

        Args:
            requests: Any number; they are batched by length.
            sampling: How.
            seed: Of all random streams.
            batch_size: Rows at once.
            on_done: Called with the number of requests finished after each batch.

        Raises:
            ConfigError: A prompt and its completion would not fit the model's positions.
        """
        longest = max((len(r.ids) for r in requests), default=0)
        check_positions(self.policy.lm, longest + sampling.max_new_tokens, "the longest prompt with its completion")
        was_training = self.policy.training
        self.policy.eval()
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
        results: dict[int, Generated] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            generators = [row_generator(seed, requests[i].stream) for i in rows]
            with torch.autocast("cuda", torch.bfloat16, enabled=self.policy.device.type == "cuda"):
                done = self._batch([requests[i] for i in rows], sampling, generators)
            results.update(zip(rows, done, strict=True))
            if on_done:
                on_done(len(rows))
        self.policy.train(was_training)
        return [results[i] for i in range(len(requests))]

    @torch.no_grad()
    def first_logits(self, requests: Sequence[Request]) -> Tensor:
        """Return the logits of the first new token of each request, batched together, [R, V] f32."""
        logits, _, _ = self._prefill(requests)
        return logits

    def _prefill(self, requests: Sequence[Request]) -> tuple[Tensor, DynamicCache, Tensor]:
        device, lm, control = self.policy.device, self.policy.lm, self.policy.control
        longest = max(len(r.ids) for r in requests)
        pads = [longest - len(r.ids) for r in requests]
        ids = torch.tensor([[0] * pad + list(r.ids) for pad, r in zip(pads, requests, strict=True)], device=device)
        mask = torch.tensor(
            [[0] * pad + [1] * len(r.ids) for pad, r in zip(pads, requests, strict=True)], device=device
        )
        weights = torch.tensor([[r.weights] for r in requests], device=device)
        cache = DynamicCache(config=lm.config)
        control.weigh(weights)
        logits = lm(
            inputs_embeds=control.embed(ids, weights, lm.get_input_embeddings()),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits.float(), cache, mask

    def _batch(
        self, requests: Sequence[Request], sampling: Sampling, generators: list[torch.Generator]
    ) -> list[Generated]:
        lm, control = self.policy.lm, self.policy.control
        logits, cache, mask = self._prefill(requests)
        weights = torch.tensor([[r.weights] for r in requests], device=mask.device)
        alive = list(range(len(requests)))
        tokens: list[list[int]] = [[] for _ in requests]
        finish: dict[int, Literal["eos", "stop", "length"]] = {}
        for step in range(sampling.max_new_tokens):
            chosen = choose(logits, sampling, [generators[row] for row in alive])
            ended = torch.isin(chosen, self._eos).tolist()
            for row, token, end in zip(alive, chosen.tolist(), ended, strict=True):
                tokens[row].append(token)
                if end:
                    finish[row] = "eos"
                elif self._stop_at(tokens[row]):
                    finish[row] = "stop"
            keep = [index for index, row in enumerate(alive) if row not in finish]
            if not keep or step == sampling.max_new_tokens - 1:
                break
            if len(keep) < len(alive):
                kept = torch.tensor(keep, device=mask.device)
                cache.batch_select_indices(kept)
                chosen, mask, weights = chosen[kept], mask[kept], weights[kept]
                alive = [alive[index] for index in keep]
            control.weigh(weights)
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            logits = (
                lm(
                    input_ids=chosen[:, None],
                    attention_mask=mask,
                    position_ids=mask.sum(dim=1, keepdim=True) - 1,
                    past_key_values=cache,
                    use_cache=True,
                )
                .logits[:, -1]
                .float()
            )
        return [self._finish(ids, finish.get(row, "length")) for row, ids in enumerate(tokens)]

    def _stop_at(self, ids: list[int]) -> bool:
        """Whether a stop string has just appeared; a token is at least one character, so the tail is enough."""
        stops = self.format.spec.stop
        tail = self.format.text(ids[-max(map(len, stops)) - 4 :]) if stops else ""
        return any(stop in tail for stop in stops)

    def _finish(self, ids: list[int], finish: Literal["eos", "stop", "length"]) -> Generated:
        text = self.format.text(ids[:-1] if finish == "eos" else ids)
        for stop in self.format.spec.stop:
            text = text.split(stop)[0]
        return Generated(text.strip(), len(ids), finish)
