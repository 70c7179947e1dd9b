"""Decoders: rows on their way through the model, first the prompt, then a token per step. Rows join at any step.

There are two, and the policy's layout decides. The packed decoder reads prompts without padding and computes once what
rows of one level share at their start (a soft prompt, a system message, a whole prompt that is requested several
times), and whole prompts of different levels where the control acts on the response only. :class:`KVCache` keeps keys
and values by length. The padded decoder aligns rows at the right ([pad, P, x], so that the control P is next to its
prompt; PEFT has [P, pad, x]) and uses transformers' own cache.

R rows, T tokens per row, K levels, V vocabulary size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from meetlm.policy.kv_cache import KVCache, RowSize
from meetlm.policy.packed_layout import PackedLayout
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
class Branch:
    """A prompt under level weights. The logits of a request's branches are added.

    Attributes:
        ids: Control slot and prompt.
        weights: Level weights [K].
        coefficient: Factor of the logits.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    coefficient: float = 1.0


class Decoder(ABC):
    """Computes the logits of rows, token by token.

    Args:
        policy: Language model and control.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    @abstractmethod
    def rows(self) -> list[int]:
        """The numbers of the rows, in the order of the tokens and logits of :meth:`step`."""

    @abstractmethod
    def add(self, branches: Mapping[int, Branch], new_tokens: Mapping[int, int]) -> Tensor:
        """Read prompts and return the logits of each first new token, [R, V] f32, in the order of ``branches``.

        Args:
            branches: The prompt of each new row, by its number.
            new_tokens: Largest number of new tokens of each row.
        """

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Read one token [R] per row and return the logits of the next one, [R, V] f32."""

    @abstractmethod
    def drop(self, rows: Sequence[int]) -> None:
        """Remove rows."""


class PackedDecoder(Decoder):
    """Decodes without padding, for a policy whose attention is ours."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._cache = KVCache()
        self._weights: dict[int, tuple[float, ...]] = {}
        self._positions: dict[int, int] = {}

    @property
    def rows(self) -> list[int]:  # noqa: D102
        return self._cache.rows

    def add(self, branches: Mapping[int, Branch], new_tokens: Mapping[int, int]) -> Tensor:  # noqa: D102
        self._cache.add({row: RowSize(len(branch.ids), new_tokens[row]) for row, branch in branches.items()})
        indices: dict[int, int] = {}
        logits = []
        for chunk in _chunks(branches, self._policy):
            logits.append(self._read(chunk))
            for row in (row for part in chunk for row in part.rows):
                indices[row] = len(indices)
        for row, branch in branches.items():
            self._weights[row], self._positions[row] = branch.weights, len(branch.ids)
        return torch.cat(logits)[[indices[row] for row in branches]]

    def step(self, tokens: Tensor) -> Tensor:  # noqa: D102
        rows = self.rows
        self._cache.extend()
        logits = self._forward(
            tokens[None],
            [self._weights[row] for row in rows],
            torch.tensor([[self._positions[row] for row in rows]], device=tokens.device),
            **decoding_arguments(self._policy.lm, self._cache),
        )
        for row in rows:
            self._positions[row] += 1
        return logits

    def drop(self, rows: Sequence[int]) -> None:  # noqa: D102
        self._cache.drop(rows)
        for row in rows:
            self._weights.pop(row, None)
            self._positions.pop(row, None)

    def _read(self, chunk: Sequence[_PromptPart]) -> Tensor:
        """Return the logits of the first new token of every row of ``chunk``, in their order."""
        device = self._policy.device
        borders = torch.tensor([0, *(part.num_new for part in chunk)]).cumsum(0)
        last = [end - 1 for end, part in zip(borders[1:].tolist(), chunk, strict=True) for _ in part.rows]
        return self._forward(
            torch.tensor([[i for part in chunk for i in part.ids[part.shared :]]], device=device),
            [weights for part in chunk for weights in part.token_weights],
            torch.cat([torch.arange(part.shared, len(part.ids)) for part in chunk])[None].to(device),
            logits_to_keep=torch.tensor(last, device=device),
            **packed_arguments(
                self._policy.lm,
                PackedLayout(borders.tolist(), [part.shared for part in chunk]),
                meet_kv_cache=self._cache,
                meet_rows=[part.rows for part in chunk],
            ),
        )

    def _forward(self, ids: Tensor, weights: list[tuple[float, ...]], positions: Tensor, **arguments: Any) -> Tensor:
        level_weights = torch.tensor([weights], device=ids.device)
        return self._policy.run(ids, level_weights, positions, **arguments)[0]


class PaddedDecoder(Decoder):
    """Decodes rows padded to the longest, for architectures whose attention cannot be replaced.

    Rows that join together stay in a batch of their own.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._batches: list[_PaddedBatch] = []

    @property
    def rows(self) -> list[int]:  # noqa: D102
        return [row for batch in self._batches for row in batch.rows]

    def add(self, branches: Mapping[int, Branch], new_tokens: Mapping[int, int]) -> Tensor:  # noqa: D102
        del new_tokens  # the cache grows
        self._batches.append(_PaddedBatch(self._policy, branches))
        return self._batches[-1].prefill()

    def step(self, tokens: Tensor) -> Tensor:  # noqa: D102
        parts = torch.split(tokens, [len(batch.rows) for batch in self._batches])
        return torch.cat([batch.step(part) for batch, part in zip(self._batches, parts, strict=True)])

    def drop(self, rows: Sequence[int]) -> None:  # noqa: D102
        for batch in self._batches:
            batch.drop(rows)
        self._batches = [batch for batch in self._batches if batch.rows]


class _PaddedBatch:
    """Rows of a padded decoder that joined together."""

    def __init__(self, policy: Policy, branches: Mapping[int, Branch]) -> None:
        self.rows = list(branches)
        self._policy = policy
        longest = max(len(branch.ids) for branch in branches.values())
        padding = [longest - len(branch.ids) for branch in branches.values()]
        self._ids = torch.tensor(
            [[0] * pad + list(branch.ids) for pad, branch in zip(padding, branches.values(), strict=True)],
            device=policy.device,
        )
        self._mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long().to(policy.device)
        self._weights = torch.tensor([[branch.weights] for branch in branches.values()], device=policy.device)
        self._prompt_weights = [[_prompt_weights(branch, policy)] for branch in branches.values()]
        self._cache = DynamicCache(config=policy.lm.config)

    def prefill(self) -> Tensor:
        """Read the prompts; see :meth:`Decoder.add`."""
        weights = torch.tensor(self._prompt_weights, device=self._ids.device).expand(-1, self._ids.shape[1] - 1, -1)
        return self._forward(self._ids, torch.cat([weights, self._weights], dim=1))

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token per row; see :meth:`Decoder.step`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)
        return self._forward(tokens[:, None], self._weights)

    def drop(self, rows: Sequence[int]) -> None:
        """Remove those of the rows that are in this batch."""
        indices = [index for index, row in enumerate(self.rows) if row not in rows]
        if len(indices) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in indices]
        selected = torch.tensor(indices, dtype=torch.int64, device=self._mask.device)
        self._cache.batch_select_indices(selected)
        self._mask, self._weights = self._mask[selected], self._weights[selected]

    def _forward(self, ids: Tensor, level_weights: Tensor) -> Tensor:
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self._policy.run(
            ids,
            level_weights,
            positions,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )[:, -1]


@dataclass(frozen=True, slots=True)
class _PromptPart:
    """A sequence of one packed forward pass: a whole prompt, or a prefix that several prompts share.

    Attributes:
        ids: All of its ids.
        weights: Level weights [K] of all ids but the last.
        last_weights: Level weights [K] of the last id.
        rows: Rows whose prompt it is; empty for a shared prefix.
        shared: Number of its first ids that the last part with ``shared`` 0 has read.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    last_weights: tuple[float, ...]
    rows: list[int]
    shared: int = 0

    @property
    def num_new(self) -> int:
        """Number of ids that this part reads itself."""
        return len(self.ids) - self.shared

    @property
    def token_weights(self) -> list[tuple[float, ...]]:
        """Level weights of the ids that this part reads itself."""
        return [*([self.weights] * (self.num_new - 1)), self.last_weights]


Parts = dict[tuple[tuple[int, ...], tuple[float, ...]], list[int]]
"""The rows of each prompt (ids) and level weights."""


def _chunks(branches: Mapping[int, Branch], policy: Policy) -> Iterator[list[_PromptPart]]:
    """Yield the parts of each forward pass, at most ``MAX_TOKENS``: prefixes, each before the prompts that share it."""
    chunk: list[_PromptPart] = []
    for weights, prefix, parts in _families(branches, policy):
        root = [_PromptPart(prefix, weights, weights, [])] if prefix else []
        chunk += root
        for (ids, last_weights), rows in parts.items():
            part = _PromptPart(ids, weights, last_weights, rows, len(prefix))
            if chunk != root and sum(each.num_new for each in chunk) + part.num_new > MAX_TOKENS:
                yield chunk
                chunk = [*root]
            chunk.append(part)
    yield chunk


def _families(
    branches: Mapping[int, Branch], policy: Policy
) -> Iterator[tuple[tuple[float, ...], tuple[int, ...], Parts]]:
    """Yield prompts that share a prefix: the level weights of the prefix, the prefix, which may be empty, the prompts.

    A prompt's last token gives the logits of its response, and so belongs to no prefix.
    """
    by_weights: dict[tuple[float, ...], dict[tuple[int, ...], Parts]] = {}
    for row, branch in branches.items():
        prompts = by_weights.setdefault(_prompt_weights(branch, policy), {})
        prompts.setdefault(branch.ids, {}).setdefault((branch.ids, branch.weights), []).append(row)
    for weights, prompts in by_weights.items():
        alone: Parts = {}
        for ids, parts in prompts.items():
            if len(parts) > 1:  # at several levels
                yield weights, ids[:-1], parts
            else:
                alone |= parts
        prefix = tuple(commonprefix([ids[:-1] for ids, _ in alone]))
        if alone:
            yield weights, prefix if len(alone) > 1 and len(prefix) >= MIN_SHARED else (), alone


def _prompt_weights(branch: Branch, policy: Policy) -> tuple[float, ...]:
    """Return the level weights [K] of a prompt's tokens before the last one."""
    return branch.weights if policy.control.scope == "all" else (0.0,) * len(branch.weights)


_CLASSES: WeakKeyDictionary[Policy, type[Decoder]] = WeakKeyDictionary()


def decoder_of(policy: Policy) -> Decoder:
    """Return a decoder without rows; the check that decides which one runs once per policy."""
    if policy not in _CLASSES:
        _CLASSES[policy] = PaddedDecoder if decoding_failure_reason(policy) else PackedDecoder
    return _CLASSES[policy](policy)


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
    decoder = PackedDecoder(policy)
    branches = {row: Branch(tuple(ids[:-1]), zero_weights) for row, ids in enumerate(prompts)}
    decoder.add(branches, dict.fromkeys(branches, 1))
    last_tokens = torch.tensor([prompts[row][-1] for row in decoder.rows], device=policy.device)
    reason = None
    for row, logits in zip(decoder.rows, decoder.step(last_tokens), strict=True):
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
