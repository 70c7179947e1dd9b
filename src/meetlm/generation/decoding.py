"""Decoders: a batch of rows on its way through the model, first the prompts, then a token per row and step.

There are two, and the policy's layout decides. The packed decoder reads prompts without padding and computes once what
rows of one level share at their start (a soft prompt, a system message, a whole prompt that is requested several
times); :class:`KVCache` keeps keys and values by length. The padded decoder aligns rows at the right ([pad, P, x], so
that the control P is next to its prompt; PEFT has [P, pad, x]) and uses transformers' own cache.

R rows, T tokens per row, K levels, V vocabulary size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from meetlm.policy.kv_cache import KVCache
from meetlm.policy.packing import decoding_arguments, packed_arguments
from meetlm.policy.policy import Policy

MAX_TOKENS = 4096
"""Largest number of prompt tokens in one forward pass (a longer prompt has a pass of its own)."""
MIN_SHARED = 8
"""Least number of tokens in common for which prompts share their computation."""
CHECKED_LENGTHS = (7, 48, 20)
"""Tokens of the rows that :func:`decoding_failure_reason` compares."""
TOLERANCE = 1e-4
"""Largest difference of a logit there, relative to the largest logit where that is above 1."""


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


class Decoder(ABC):
    """Computes the logits of a batch of rows, token by token.

    Args:
        policy: Language model and control.
        requests: One request per row.
        new_tokens: Largest number of new tokens per row.
    """

    @abstractmethod
    def __init__(self, policy: Policy, requests: Sequence[Request], new_tokens: int) -> None: ...

    @property
    @abstractmethod
    def order(self) -> list[int]:
        """The numbers of the rows that are left, in the order of all logits and tokens."""

    @abstractmethod
    def prefill(self) -> Tensor:
        """Read the prompts and return the logits of each row's first new token, [R, V] f32."""

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Read one token [R] per row and return the logits of the next one, [R, V] f32."""

    @abstractmethod
    def drop(self, rows: Sequence[int]) -> None:
        """Remove rows."""


@torch.no_grad()
def decoding_failure_reason(policy: Policy) -> str | None:
    """Return why ``policy`` needs the padded decoder; ``None`` if packed decoding gives the logits of one pass."""
    if policy.layout == "padded":
        return policy.padding_reason or "its sequences are padded"
    was_training = policy.training
    policy.eval()
    generator = torch.Generator().manual_seed(0)
    zero_weights = (0.0,) * len(policy.control.levels)
    table = policy.lm.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    prompts = [torch.randint(0, table.shape[0], (n,), generator=generator).tolist() for n in CHECKED_LENGTHS]
    decoder = PackedDecoder(policy, [Request(tuple(ids[:-1]), zero_weights, 0) for ids in prompts], 1)
    decoder.prefill()
    last_tokens = torch.tensor([prompts[row][-1] for row in decoder.order], device=policy.device)
    reason = None
    for row, logits in zip(decoder.order, decoder.step(last_tokens), strict=True):
        ids = torch.tensor([prompts[row]], device=policy.device)
        level_weights = torch.zeros(*ids.shape, len(zero_weights), device=policy.device)
        positions = torch.arange(ids.shape[1], device=policy.device)[None]
        expected = policy.run(ids, level_weights, positions, logits_to_keep=1)[0, -1]
        difference = float((logits - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:
            tokens = CHECKED_LENGTHS[row] - 1
            reason = f"logits of a step after {tokens} tokens differ from those of one forward pass by {difference:.2g}"
    policy.train(was_training)
    return reason


class PackedDecoder(Decoder):
    """Decodes without padding, for a policy whose attention is ours."""

    def __init__(self, policy: Policy, requests: Sequence[Request], new_tokens: int) -> None:
        self._policy, self._requests = policy, requests
        self._cache = KVCache([len(request.ids) for request in requests], new_tokens, policy.device)
        self._positions = torch.tensor([len(request.ids) for request in requests], device=policy.device)

    @property
    def order(self) -> list[int]:  # noqa: D102
        return self._cache.rows

    def prefill(self) -> Tensor:  # noqa: D102
        rows: list[int] = []
        logits = []
        for chunk in _chunks(self._requests):
            logits.append(self._read(chunk))
            rows += [row for sequence in chunk for row in sequence.rows]
        places = {row: place for place, row in enumerate(rows)}
        return torch.cat(logits)[[places[row] for row in self.order]]

    def step(self, tokens: Tensor) -> Tensor:  # noqa: D102
        order = self.order
        self._cache.extend()
        logits = self._forward(
            tokens[None],
            [self._requests[row].weights for row in order],
            self._positions[order][None],
            **decoding_arguments(self._policy.lm, self._cache),
        )
        self._positions += 1
        return logits

    def drop(self, rows: Sequence[int]) -> None:  # noqa: D102
        self._cache.drop(rows)

    def _read(self, chunk: Sequence[_PromptPart]) -> Tensor:
        """Return the logits of the first new token of every row of ``chunk``, in their order."""
        device = self._policy.device
        borders = torch.tensor([0, *(part.num_new for part in chunk)]).cumsum(0)
        last = [end - 1 for end, part in zip(borders[1:].tolist(), chunk, strict=True) for _ in part.rows]
        return self._forward(
            torch.tensor([[i for part in chunk for i in part.ids[part.shared :]]], device=device),
            [part.weights for part in chunk for _ in range(part.num_new)],
            torch.cat([torch.arange(part.shared, len(part.ids)) for part in chunk])[None].to(device),
            logits_to_keep=torch.tensor(last, device=device),
            **packed_arguments(
                self._policy.lm,
                borders.to(device),
                [part.shared for part in chunk],
                meet_kv_cache=self._cache,
                meet_rows=[part.rows for part in chunk],
            ),
        )

    def _forward(self, ids: Tensor, weights: list[tuple[float, ...]], positions: Tensor, **arguments: Any) -> Tensor:
        level_weights = torch.tensor([weights], device=ids.device)
        return self._policy.run(ids, level_weights, positions, **arguments)[0]


class PaddedDecoder(Decoder):
    """Decodes rows padded to the longest, for architectures whose attention cannot be replaced."""

    def __init__(self, policy: Policy, requests: Sequence[Request], new_tokens: int) -> None:
        del new_tokens  # the cache grows
        self._policy, self._rows = policy, list(range(len(requests)))
        longest = max(len(request.ids) for request in requests)
        padding = [longest - len(request.ids) for request in requests]
        self._ids = torch.tensor(
            [[0] * pad + list(request.ids) for pad, request in zip(padding, requests, strict=True)],
            device=policy.device,
        )
        self._mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long().to(policy.device)
        self._weights = torch.tensor([[request.weights] for request in requests], device=policy.device)
        self._cache = DynamicCache(config=policy.lm.config)

    @property
    def order(self) -> list[int]:  # noqa: D102
        return self._rows

    def prefill(self) -> Tensor:  # noqa: D102
        return self._forward(self._ids, (self._mask.cumsum(dim=1) - 1).clamp(min=0))

    def step(self, tokens: Tensor) -> Tensor:  # noqa: D102
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], dim=1)
        return self._forward(tokens[:, None], self._mask.sum(dim=1, keepdim=True) - 1)

    def drop(self, rows: Sequence[int]) -> None:  # noqa: D102
        places = [place for place, row in enumerate(self._rows) if row not in rows]
        indices = torch.tensor(places, device=self._mask.device)
        self._cache.batch_select_indices(indices)
        self._mask, self._weights = self._mask[indices], self._weights[indices]
        self._rows = [self._rows[place] for place in places]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        logits = self._policy.run(
            ids,
            self._weights.expand(*ids.shape, -1),
            positions,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return logits[:, -1]


@dataclass(frozen=True, slots=True)
class _PromptPart:
    """A sequence of one packed forward pass: a whole prompt, or a prefix that several prompts share.

    Attributes:
        ids: All of its ids.
        weights: Level weights [K].
        rows: Rows whose prompt it is; empty for a shared prefix.
        shared: Number of its first ids that the last part with ``shared`` 0 has read.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    rows: list[int]
    shared: int = 0

    @property
    def num_new(self) -> int:
        """Number of ids that this part reads itself."""
        return len(self.ids) - self.shared


def _chunks(requests: Sequence[Request]) -> Iterable[list[_PromptPart]]:
    """Yield the parts of each forward pass, at most ``MAX_TOKENS``: per level its shared prefix, then each prompt."""
    chunk: list[_PromptPart] = []
    for weights in dict.fromkeys(request.weights for request in requests):
        rows_by_prompt: dict[tuple[int, ...], list[int]] = {}
        for row, request in enumerate(requests):
            if request.weights == weights:
                rows_by_prompt.setdefault(request.ids, []).append(row)
        prefix = tuple(commonprefix([ids[:-1] for ids in rows_by_prompt]))  # a row's last token gives its logits
        if len(rows_by_prompt) == 1 or len(prefix) < MIN_SHARED:
            prefix = ()
        root = [_PromptPart(prefix, weights, [])] if prefix else []
        chunk += root
        for ids, rows in rows_by_prompt.items():
            part = _PromptPart(ids, weights, rows, len(prefix))
            if chunk != root and sum(each.num_new for each in chunk) + part.num_new > MAX_TOKENS:
                yield chunk
                chunk = [*root]
            chunk.append(part)
    yield chunk
