"""Rows on their way through the model: prompts in, then a token a row and step. Two ways, by the policy's layout.

Packed: prompts go in without padding, what rows of one level share at their start once (a soft prompt, a system
message, a whole prompt that is asked for several times), and :class:`KVCache` keeps keys by length. Padded: rows stand
right-aligned ([pad, P, x]: the control is next to its query, unlike PEFT's [P, pad, x]) in transformers' own cache.

Shapes: R rows, T tokens, K levels, V vocabulary.
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
from meetlm.policy.packing import packed_arguments, step_arguments
from meetlm.policy.policy import Policy

MAX_TOKENS = 4096
"""Most prompt tokens in one forward pass (or one prompt)."""
MIN_SHARED = 8
"""Fewer tokens than this are not worth a branch."""
CHECKED = (7, 48, 20)
"""Tokens of the rows that :func:`decoding_failure_reason` looks at."""
TOLERANCE = 1e-4
"""Its largest difference of a logit, relative to the largest logit where that is above 1."""


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


class Rows(ABC):
    """The rows of a batch.

    Args:
        policy: Whose.
        requests: One a row.
        new_tokens: Most that a row gains.
    """

    @abstractmethod
    def __init__(self, policy: Policy, requests: Sequence[Request], new_tokens: int) -> None: ...

    @property
    @abstractmethod
    def order(self) -> list[int]:
        """The rows that are left, by number, in the order of all logits and tokens."""

    @abstractmethod
    def start(self) -> Tensor:
        """Read the prompts; return the logits of each row's first new token, [R, V] f32."""

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Read a token [R] of each row; return the logits of the next, [R, V] f32."""

    @abstractmethod
    def drop(self, rows: Sequence[int]) -> None:
        """Let rows leave."""


@torch.no_grad()
def decoding_failure_reason(policy: Policy) -> str | None:
    """Return why rows of ``policy`` have to be padded; ``None`` where packed ones give the logits of one pass."""
    lm = policy.lm
    if policy.layout == "padded":
        return policy.padding_reason or "its sequences are padded"
    was_training = policy.training
    policy.eval()
    generator = torch.Generator().manual_seed(0)
    nowhere = (0.0,) * len(policy.control.levels)
    table = lm.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    prompts = [torch.randint(0, table.shape[0], (n,), generator=generator).tolist() for n in CHECKED]
    rows = PackedRows(policy, [Request(tuple(ids[:-1]), nowhere, 0) for ids in prompts], 1)
    rows.start()
    stepped = rows.step(torch.tensor([prompts[row][-1] for row in rows.order], device=policy.device))
    why = None
    policy.control.set_level_weights(torch.tensor([[nowhere]], device=policy.device))
    for row, logits in zip(rows.order, stepped, strict=True):
        whole = lm(torch.tensor([prompts[row]], device=policy.device), use_cache=False, logits_to_keep=1).logits[0, -1]
        gap = float((logits - whole.float()).abs().max() / whole.abs().max().clamp(min=1))
        if not gap <= TOLERANCE:
            why = f"logits of a step after {CHECKED[row] - 1} tokens differ from those of one pass by {gap:.2g}"
    policy.train(was_training)
    return why


class PackedRows(Rows):
    """Rows without padding, of a policy whose attention is ours."""

    def __init__(self, policy: Policy, requests: Sequence[Request], new_tokens: int) -> None:
        self._policy, self._requests = policy, requests
        self._past = KVCache([len(r.ids) for r in requests], new_tokens, policy.device)
        self._positions = torch.tensor([len(r.ids) for r in requests], device=policy.device)

    @property
    def order(self) -> list[int]:  # noqa: D102
        return self._past.rows

    def start(self) -> Tensor:  # noqa: D102
        rows: list[int] = []
        logits = []
        for sequences in _chunks(self._requests):
            logits.append(self._read(sequences))
            rows += [row for sequence in sequences for row in sequence.rows]
        places = {row: place for place, row in enumerate(rows)}
        return torch.cat(logits)[[places[row] for row in self.order]]

    def step(self, tokens: Tensor) -> Tensor:  # noqa: D102
        order = self.order
        self._past.advance()
        logits = self._forward(
            tokens[None],
            [self._requests[row].weights for row in order],
            self._positions[order][None],
            **step_arguments(self._policy.lm, self._past),
        )
        self._positions += 1
        return logits

    def drop(self, rows: Sequence[int]) -> None:  # noqa: D102
        self._past.drop(rows)

    def _read(self, sequences: Sequence[_Sequence]) -> Tensor:
        """Return the logits of the first new token of every row of ``sequences``, in their order."""
        device = self._policy.device
        lengths = torch.tensor([0, *(len(one.ids) - one.shared for one in sequences)])
        borders = lengths.cumsum(0)
        last = [end - 1 for end, one in zip(borders[1:].tolist(), sequences, strict=True) for _ in one.rows]
        return self._forward(
            torch.tensor([[i for one in sequences for i in one.ids[one.shared :]]], device=device),
            [one.weights for one in sequences for _ in one.ids[one.shared :]],
            torch.cat([torch.arange(one.shared, len(one.ids)) for one in sequences])[None].to(device),
            logits_to_keep=torch.tensor(last, device=device),
            **packed_arguments(
                self._policy.lm,
                borders.to(device),
                [one.shared for one in sequences],
                meet_past=self._past,
                meet_rows=[one.rows for one in sequences],
            ),
        )

    def _forward(self, ids: Tensor, weights: list[tuple[float, ...]], positions: Tensor, **arguments: Any) -> Tensor:
        lm, control = self._policy.lm, self._policy.control
        levels = torch.tensor([weights], device=ids.device)
        control.set_level_weights(levels)
        logits: Tensor = lm(
            inputs_embeds=control.embed(ids, levels, lm.get_input_embeddings()),
            position_ids=positions,
            use_cache=False,
            **arguments,
        ).logits[0]
        return logits.float()


class PaddedRows(Rows):
    """Rows padded to the longest, for architectures whose attention cannot be replaced."""

    def __init__(self, policy: Policy, requests: Sequence[Request], new_tokens: int) -> None:
        del new_tokens  # the cache grows
        self._policy, self._alive = policy, list(range(len(requests)))
        longest = max(len(r.ids) for r in requests)
        pads = [longest - len(r.ids) for r in requests]
        self._ids = torch.tensor(
            [[0] * pad + list(r.ids) for pad, r in zip(pads, requests, strict=True)], device=policy.device
        )
        self._mask = (torch.arange(longest) >= torch.tensor(pads)[:, None]).long().to(policy.device)
        self._weights = torch.tensor([[r.weights] for r in requests], device=policy.device)
        self._cache = DynamicCache(config=policy.lm.config)

    @property
    def order(self) -> list[int]:  # noqa: D102
        return self._alive

    def start(self) -> Tensor:  # noqa: D102
        return self._forward(self._ids, (self._mask.cumsum(dim=1) - 1).clamp(min=0))

    def step(self, tokens: Tensor) -> Tensor:  # noqa: D102
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._alive), 1)], dim=1)
        return self._forward(tokens[:, None], self._mask.sum(dim=1, keepdim=True) - 1)

    def drop(self, rows: Sequence[int]) -> None:  # noqa: D102
        keep = [place for place, row in enumerate(self._alive) if row not in rows]
        kept = torch.tensor(keep, device=self._mask.device)
        self._cache.batch_select_indices(kept)
        self._mask, self._weights = self._mask[kept], self._weights[kept]
        self._alive = [self._alive[place] for place in keep]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        lm, control = self._policy.lm, self._policy.control
        control.set_level_weights(self._weights)
        logits: Tensor = lm(
            inputs_embeds=control.embed(ids, self._weights, lm.get_input_embeddings()),
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits.float()


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A sequence of a packed pass.

    Attributes:
        ids: All of it.
        weights: Of its level.
        rows: Whose prompt it is; none where it is only what others share.
        shared: How many of its ids the last sequence with ``shared`` 0 has read.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    rows: list[int]
    shared: int = 0


def _chunks(requests: Sequence[Request]) -> Iterable[list[_Sequence]]:
    """Yield passes of at most ``MAX_TOKENS``: under each level what its prompts share, then each different prompt."""
    chunk: list[_Sequence] = []
    for weights in dict.fromkeys(r.weights for r in requests):
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, request in enumerate(requests):
            if request.weights == weights:
                rows.setdefault(request.ids, []).append(row)
        prefix = tuple(commonprefix([ids[:-1] for ids in rows]))  # a row's last token gives its logits
        if len(rows) == 1 or len(prefix) < MIN_SHARED:
            prefix = ()
        root = [_Sequence(prefix, weights, [])] if prefix else []
        chunk += root
        for ids, numbers in rows.items():
            if chunk != root and _tokens(chunk) + len(ids) - len(prefix) > MAX_TOKENS:
                yield chunk
                chunk = [*root]
            chunk.append(_Sequence(ids, weights, numbers, len(prefix)))
    yield chunk


def _tokens(sequences: Iterable[_Sequence]) -> int:
    return sum(len(one.ids) - one.shared for one in sequences)
