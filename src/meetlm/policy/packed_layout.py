"""Positions of the sequences in a packed row, and the resulting masks.

All attention layers of a forward pass share one layout. The first layer that needs a mask computes it; later
layers reuse it.

T tokens, Q sequences, G query heads per key head, H_kv key heads of size d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from meetlm.policy.even_parts import even_parts

BLOCK = 64
"""Approximate number of tokens that attend at a time on CPUs (LOG.md, 2026-11-25)."""


@dataclass(frozen=True, slots=True)
class VarlenMetadata:
    """Positions of the queries and keys of each sequence, as arguments of a variable-length attention kernel.

    Attributes:
        cu_seqlens_q: [Q + 1] int32, borders of the sequences.
        cu_seqlens_k: [Q + 1] int32, borders of their keys; shared keys come first.
        max_seqlen_q: Largest number of tokens in a sequence.
        max_seqlen_k: Largest number of keys in a sequence.
        key_tokens: [keys] int64, the token of each key; ``None`` if nothing is shared.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    key_tokens: Tensor | None


class PackedLayout:
    """The sequences of a packed row.

    Keys come in segments, one per sequence. A sequence may share the first tokens of another segment, its root.

    Args:
        borders: Q + 1 numbers: where the sequences begin and end.
        shared: For each sequence, the number of leading tokens that it shares with its root; 0 for all by default.
        prompts: Lengths of prompts that an earlier forward pass has read (:class:`PromptKeys`): their segments come
            before those of the row.
        roots: With ``prompts``, for each sequence the index of its root among them. Otherwise, the root is the last
            previous sequence that shares nothing.

    Attributes:
        lengths: Number of tokens of each sequence in the row.
        shared: As passed.
        segments: Number of keys of each segment.
        roots: For each sequence, the index of its root among the segments.
        longest: Largest number of keys of a sequence, shared ones included.
        blocks: For each sequence, the sizes of the blocks of tokens that attend at a time on CPUs.
    """

    def __init__(
        self,
        borders: Sequence[int],
        shared: Sequence[int] | None = None,
        prompts: Sequence[int] = (),
        roots: Sequence[int] | None = None,
    ) -> None:
        self.lengths = [end - start for start, end in pairwise(borders)]
        self.shared = list(shared) if shared else [0] * len(self.lengths)
        self.segments = [*prompts, *self.lengths]
        unshared = (0 if skip else index for index, skip in enumerate(self.shared))
        self.roots = list(roots) if roots else list(accumulate(unshared, max))
        self.longest = max(map(sum, zip(self.lengths, self.shared, strict=True)))
        self.blocks = [_block_sizes(length) for length in self.lengths]
        self._block_masks: dict[tuple[int, int | None, torch.device], Tensor] = {}
        self._sequence_masks: dict[tuple[int, int, int | None, torch.device], Tensor] = {}
        self._metadata: dict[torch.device, VarlenMetadata] = {}

    @property
    def num_prompts(self) -> int:
        """Number of segments before those of the row."""
        return len(self.segments) - len(self.lengths)

    def block_mask(self, query: Tensor, tokens: int, keys: int, window: int | None) -> Tensor:
        """Return the additive mask of a block: 0 if a query sees a key, else -inf, [tokens·G, keys].

        Args:
            query: [1, H_kv, tokens·G, d], G rows per token.
            tokens: Number of tokens; the last one is at the position of the last key.
            keys: Number of keys.
            window: Keys that a token sees, its own included; ``None`` = all keys up to its own.
        """
        repeat, longest = query.shape[2] // tokens, self.longest
        cache_key = repeat, window, query.device
        if cache_key not in self._block_masks:
            row = torch.arange(2 * BLOCK, device=query.device)[:, None]
            distance = row - torch.arange(-longest, 2 * BLOCK, device=query.device)
            is_hidden = (distance < 0) | (distance >= (window or longest + 2 * BLOCK))
            zeros = torch.zeros(is_hidden.shape, dtype=query.dtype, device=query.device)
            mask = zeros.masked_fill(is_hidden, float("-inf"))
            self._block_masks[cache_key] = mask.repeat_interleave(repeat, dim=0)
        end = longest + tokens
        return self._block_masks[cache_key][: tokens * repeat, end - keys : end]

    def sequence_mask(self, length: int, keys: int, window: int | None, device: torch.device) -> Tensor:
        """Return the boolean mask of a sequence: which keys its last ``length`` tokens see, [length, keys].

        Args:
            length: Number of queries.
            keys: Number of keys of the whole sequence, shared ones included.
            window: As in :meth:`block_mask`.
            device: Device of the mask.
        """
        cache_key = length, keys, window, device
        if cache_key not in self._sequence_masks:
            position = torch.arange(keys, device=device)
            distance = position[keys - length :, None] - position[None, :]
            self._sequence_masks[cache_key] = (distance >= 0) & (distance < (window or keys))
        return self._sequence_masks[cache_key]

    def metadata(self, device: torch.device) -> VarlenMetadata:
        """Return the positions of queries and keys, as tensors on ``device``."""
        if device not in self._metadata:
            num_keys = [length + skip for length, skip in zip(self.lengths, self.shared, strict=True)]
            cu_seqlens_q, cu_seqlens_k = (
                torch.tensor([0, *sizes]).cumsum(0).to(device, torch.int32) for sizes in (self.lengths, num_keys)
            )
            key_tokens = self._key_tokens().to(device) if any(self.shared) else None
            self._metadata[device] = VarlenMetadata(
                cu_seqlens_q, cu_seqlens_k, max(self.lengths), self.longest, key_tokens
            )
        return self._metadata[device]

    def _key_tokens(self) -> Tensor:
        """Return the token of each key, the shared ones before a sequence's own."""
        starts = list(accumulate(self.segments, initial=0))
        parts = []
        for index, (root, skip) in enumerate(zip(self.roots, self.shared, strict=True), self.num_prompts):
            parts += [torch.arange(starts[root], starts[root] + skip), torch.arange(starts[index], starts[index + 1])]
        return torch.cat(parts)


class PromptKeys:
    """Keys and values of prompts, layer by layer, for later forward passes over what follows the prompts.

    The first pass stores them, later ones read them.

    Attributes:
        is_stored: Whether the first pass has ended.
    """

    def __init__(self) -> None:
        self.is_stored = False
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values that a layer attends to, [1, H_kv, keys, d]: those stored, then its own."""
        if not self.is_stored:
            self._layers[layer] = key, value
            return key, value
        stored_key, stored_value = self._layers[layer]
        return torch.cat([stored_key, key], dim=2), torch.cat([stored_value, value], dim=2)


class PromptSplit:
    """A packed row in two parts: prompts on which no level acts, and all that follows them.

    Args:
        layout: The sequences of the row; sequences that share a prompt follow its root.
        uncontrolled: For each sequence, how many of its first tokens in the row belong to the first part.

    Attributes:
        is_prompt: Whether a token belongs to the first part, [T] bool.
        prompts: The sequences of the first part.
        rest: The sequences of the second part, which share the prompts.
    """

    def __init__(self, layout: PackedLayout, uncontrolled: Sequence[int]) -> None:
        pairs = list(zip(layout.lengths, uncontrolled, strict=True))
        self.is_prompt = torch.cat([torch.arange(length) < count for length, count in pairs])
        prompts = [count for count in uncontrolled if count]
        self.prompts = PackedLayout(_borders(prompts))
        self.rest = PackedLayout(
            _borders([length - count for length, count in pairs]),
            [skip + count for skip, count in zip(layout.shared, uncontrolled, strict=True)],
            prompts,
            [max(0, number - 1) for number in accumulate(int(count > 0) for count in uncontrolled)],
        )


def _borders(lengths: Sequence[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))


def _block_sizes(length: int) -> list[int]:
    """Return the sizes of a sequence's blocks: about equal and below 2·BLOCK."""
    return [part.stop - part.start for part in even_parts(length, max(1, round(length / BLOCK)))]
