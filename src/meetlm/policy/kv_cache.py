"""A key-value cache for rows of different lengths, in which no row costs as much as the longest.

Rows are right-aligned in groups of similar length: the new keys of a step all go into one column of a group, and
attention reads as much as the group's longest row needs. The last row of a group replaces a row that leaves, so only
one row is copied.

R rows, H heads, H_kv key heads of size d, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

MAX_WASTE = 0.2
"""Largest share of padding among a group's prompt tokens: smaller groups read less but need more calls."""


@dataclass(slots=True)
class _Group:
    """Rows of similar length.

    Attributes:
        rows: Their numbers, in the order of their places in the buffers.
        width: Tokens of the longest prompt.
        mask: [R, 1, 1, width + new] f32, -inf where a row is padding; ``None`` where no row has padding.
        keys: Keys by layer, [R, H_kv, width + new, d].
        values: Values by layer, like ``keys``.
    """

    rows: list[int]
    width: int
    mask: Tensor | None
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def drop(self, row: int) -> None:
        """Replace ``row`` by the last row."""
        place, last = self.rows.index(row), len(self.rows) - 1
        if place != last:
            masks = [] if self.mask is None else [self.mask]
            for tensor in (*self.keys.values(), *self.values.values(), *masks):
                tensor[place] = tensor[last]
            self.rows[place] = self.rows[last]
        self.rows.pop()


class KVCache:
    """Keys and values of the rows of a batch, layer by layer; the packed attention fills it.

    Args:
        lengths: Tokens of the prompts, [R].
        new_tokens: Largest number of new tokens per row.
        device: Device of the model.
    """

    def __init__(self, lengths: Sequence[int], new_tokens: int, device: torch.device) -> None:
        self._lengths, self._max_new, self._num_new = list(lengths), new_tokens, 0
        self._groups = [self._group(rows, device) for rows in _group_by_length(self._lengths)]

    @property
    def rows(self) -> list[int]:
        """The rows that are left, in the order in which :meth:`attend` requires them."""
        return [row for group in self._groups for row in group.rows]

    def prefill(self, layer: int, prompts: Sequence[tuple[Sequence[int], tuple[Tensor, Tensor]]]) -> None:
        """Store the keys and values of prompts.

        Args:
            layer: Index of the layer.
            prompts: For each prompt the rows that it belongs to, and its keys and values, [H_kv, T, d].
        """
        places = {row: (group, place) for group in self._groups for place, row in enumerate(group.rows)}
        for rows, keys_values in prompts:
            for group, place in (places[row] for row in rows):
                for buffers, tensor in zip((group.keys, group.values), keys_values, strict=True):
                    heads, length, size = tensor.shape
                    if layer not in buffers:
                        buffers[layer] = tensor.new_zeros(len(group.rows), heads, group.width + self._max_new, size)
                    buffers[layer][place, :, group.width - length : group.width] = tensor

    def extend(self) -> None:
        """Make room for one more token per row, before the forward pass that reads it."""
        self._num_new += 1

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """Store the key and value of each row's newest token and return its attention output, [1, R, H, d].

        Args:
            layer: Index of the layer.
            query: [1, H, R, d], the rows in the order of :attr:`rows`; H is a multiple of H_kv.
            key: [1, H_kv, R, d].
            value: [1, H_kv, R, d].
            scaling: Factor of the scores; 1/sqrt(d) where ``None``.
            window: Number of tokens that are seen, the newest included; ``None`` = all.
        """
        _, heads, _, size = query.shape
        kv_heads = key.shape[1]
        # Queries that share a key head take the dimension of tokens, so that no key is repeated.
        queries = query[0].view(kv_heads, heads // kv_heads, -1, size).permute(2, 0, 1, 3)
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        outputs, start = [], 0
        for group in self._groups:
            if not group.rows:
                continue
            count = len(group.rows)
            end = group.width + self._num_new
            first = max(0, end - window) if window else 0
            group_rows = slice(start, start + count)
            group.keys[layer][:count, :, end - 1] = keys[group_rows]
            group.values[layer][:count, :, end - 1] = values[group_rows]
            outputs.append(
                functional.scaled_dot_product_attention(
                    queries[group_rows],
                    group.keys[layer][:count, :, first:end],
                    group.values[layer][:count, :, first:end],
                    attn_mask=None if group.mask is None else group.mask[:count, :, :, first:end].to(query.dtype),
                    scale=scaling,
                )
            )
            start += count
        return torch.cat(outputs).reshape(1, -1, heads, size)

    def drop(self, rows: Sequence[int]) -> None:
        """Remove rows."""
        for row in rows:
            next(group for group in self._groups if row in group.rows).drop(row)

    def _group(self, rows: list[int], device: torch.device) -> _Group:
        lengths = [self._lengths[row] for row in rows]
        width = max(lengths)
        mask = None
        if min(lengths) < width:
            columns = torch.arange(width + self._max_new, device=device)
            is_padding = columns < width - torch.tensor(lengths, device=device)[:, None]
            mask = torch.zeros(is_padding.shape, device=device).masked_fill(is_padding, float("-inf"))[:, None, None]
        return _Group(rows, width, mask)


def _group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Return the rows in groups of similar length, the longest first."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        group = groups[-1] if groups else []
        num_tokens = sum(lengths[other] for other in group) + lengths[row]
        if group and 1 - num_tokens / (lengths[group[0]] * (len(group) + 1)) <= MAX_WASTE:
            group.append(row)
        else:
            groups.append([row])
    return groups
