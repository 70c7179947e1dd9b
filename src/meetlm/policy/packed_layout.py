"""What the attention layers of one forward pass over packed sequences have in common: borders, masks, places of keys.

All of it is made once, by the first layer that asks, and used by every other.

T tokens, Q sequences, G query heads to a key head, H_kv key heads of size d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

BLOCK = 64
"""About how many tokens' queries attend at a time on CPUs (LOG.md, 2026-11-25)."""


@dataclass(frozen=True, slots=True)
class VarlenMetadata:
    """Where the queries and keys of each sequence stand, as a kernel for sequences of any length is told.

    Attributes:
        queries: [Q + 1] int32, borders of the sequences.
        keys: [Q + 1] int32, the same with the keys that a sequence shares before its own.
        longest_queries: Most tokens of a sequence.
        longest_keys: Most keys of one.
        gathered: [keys] int64, which token each key is of; ``None`` where nothing is shared, and each is its own.
    """

    queries: Tensor
    keys: Tensor
    longest_queries: int
    longest_keys: int
    gathered: Tensor | None


class PackedLayout:
    """The sequences of a packed row.

    Args:
        borders: Q + 1 numbers, where they begin and end.
        shared: How many tokens each takes from the last one before it that shares none; nothing is shared by default.

    Attributes:
        lengths: Own tokens of each.
        shared: As given.
        longest: Most keys of a sequence, shared ones counted.
        blocks: Of each sequence, the sizes of the blocks of queries that attend at a time on CPUs.
    """

    def __init__(self, borders: Sequence[int], shared: Sequence[int] | None = None) -> None:
        self.lengths = [end - start for start, end in pairwise(borders)]
        self.shared = list(shared) if shared else [0] * len(self.lengths)
        self.longest = max(map(sum, zip(self.lengths, self.shared, strict=True)))
        self.blocks = [_sizes(length) for length in self.lengths]
        self._masks: dict[tuple[int, int | None, torch.device], Tensor] = {}
        self._seen: dict[tuple[int, int, int | None, torch.device], Tensor] = {}
        self._places: dict[torch.device, VarlenMetadata] = {}

    def mask(self, query: Tensor, tokens: int, keys: int, window: int | None) -> Tensor:
        """Return what is added to scores: 0 where a query sees a key and -inf elsewhere, [tokens·G, keys].

        Args:
            query: [1, H_kv, tokens·G, d], G rows for each token.
            tokens: How many; the last of them stands where the last key does.
            keys: How many.
            window: Keys that a token sees, its own included; all before it where ``None``.
        """
        repeat, longest = query.shape[2] // tokens, self.longest
        kind = repeat, window, query.device
        if kind not in self._masks:
            row = torch.arange(2 * BLOCK, device=query.device)[:, None]
            behind = row - torch.arange(-longest, 2 * BLOCK, device=query.device)
            unseen = (behind < 0) | (behind >= (window or longest + 2 * BLOCK))
            mask = torch.zeros(unseen.shape, dtype=query.dtype, device=query.device).masked_fill(unseen, float("-inf"))
            self._masks[kind] = mask.repeat_interleave(repeat, dim=0)
        end = longest + tokens
        return self._masks[kind][: tokens * repeat, end - keys : end]

    def seen(self, length: int, keys: int, window: int | None, device: torch.device) -> Tensor:
        """Return which keys the last ``length`` tokens of a sequence see, [length, keys] bool.

        Args:
            length: Of the queries.
            keys: Of the whole sequence, shared ones before its own.
            window: As for :meth:`mask`.
            device: Where it is wanted.
        """
        kind = length, keys, window, device
        if kind not in self._seen:
            position = torch.arange(keys, device=device)
            distance = position[keys - length :, None] - position[None, :]
            self._seen[kind] = (distance >= 0) & (distance < (window or keys))
        return self._seen[kind]

    def places(self, device: torch.device) -> VarlenMetadata:
        """Return where queries and keys stand, on ``device``."""
        if device not in self._places:
            whole = [length + skip for length, skip in zip(self.lengths, self.shared, strict=True)]
            queries, keys = (
                torch.tensor([0, *sizes]).cumsum(0).to(device, torch.int32) for sizes in (self.lengths, whole)
            )
            gathered = self._gathered().to(device) if any(self.shared) else None
            self._places[device] = VarlenMetadata(queries, keys, max(self.lengths), self.longest, gathered)
        return self._places[device]

    def _gathered(self) -> Tensor:
        """Return which token each key is of, shared ones before a sequence's own."""
        parts, start, root = [], 0, 0
        for length, skip in zip(self.lengths, self.shared, strict=True):
            if not skip:
                root = start
            parts += [torch.arange(root, root + skip), torch.arange(start, start + length)]
            start += length
        return torch.cat(parts)


def _sizes(length: int) -> list[int]:
    """Return the sizes of a sequence's blocks, about equal and below 2·BLOCK."""
    count = max(1, round(length / BLOCK))
    borders = [length * number // count for number in range(count + 1)]
    return [end - start for start, end in pairwise(borders)]
