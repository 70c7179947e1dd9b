"""A key-value cache for rows of different lengths, which join and leave at any step.

Rows are right-aligned in groups of similar length: the new keys of a step all go into one column of a group, and
attention reads only as much as the group's longest row needs. The newest column holds the last token of every row,
whenever the row joined. The last row of a group replaces a row that leaves, so only one row is copied.

R rows of a group, C columns, H heads, H_kv key heads of size d, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MAX_WASTE = 0.2
"""Largest share of padding among a group's tokens: smaller groups read less but need more calls."""
GROWTH = 1.5
"""Width of a buffer that grows, relative to what its rows need: each growth copies the whole buffer."""


@dataclass(frozen=True, slots=True)
class RowSize:
    """Tokens of a row.

    Attributes:
        prompt: Tokens of the prompt.
        new: Largest number of new tokens.
    """

    prompt: int
    new: int


class _Group:
    """Rows of similar length.

    Attributes:
        rows: Their numbers, in the order of the buffers.
        end: Number of columns in use; the newest one is ``end - 1``.
        keys: Keys by layer, at least R and C long: [R, H_kv, C, d].
        values: Values by layer, like ``keys``.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.end = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._starts: list[int] = []  # first column of each row
        self._needed = 0  # columns that all rows together may come to need
        self._mask: Tensor | None = None

    @property
    def first_column(self) -> int:
        """The first column that holds a token."""
        return min(self._starts)

    def waste(self, length: int) -> float:
        """Return the share of padding if a row of ``length`` tokens joins; 1 if it is too long to join."""
        if length > self.end:
            return 1.0
        num_tokens = sum(self.end - start for start in self._starts) + length
        return 1 - num_tokens / (max(self.end - self.first_column, length) * (len(self.rows) + 1))

    def add(self, row: int, size: RowSize) -> None:
        """Add a row; :meth:`fit` follows."""
        if not self.rows:
            self.end = size.prompt
        self.rows.append(row)
        self._starts.append(self.end - size.prompt)
        self._needed = max(self._needed, self.end + size.new)
        self._mask = None

    def fit(self) -> None:
        """Copy buffers that are too small into larger ones, without the columns before the first token."""
        first_column = self.first_column
        columns = round(GROWTH * (self._needed - first_column))
        is_shifted = False
        for buffers in (self.keys, self.values):
            for layer, tensor in buffers.items():
                rows, heads, old_columns, size = tensor.shape
                if rows >= len(self.rows) and old_columns >= self._needed:
                    continue
                buffers[layer] = tensor.new_zeros(len(self.rows), heads, columns, size)
                count = min(rows, len(self.rows))
                buffers[layer][:count, :, : self.end - first_column] = tensor[:count, :, first_column : self.end]
                is_shifted = True
        if is_shifted:
            self.end, self._needed = self.end - first_column, self._needed - first_column
            self._starts = [start - first_column for start in self._starts]

    def store(self, layer: int, row: int, keys_values: tuple[Tensor, Tensor]) -> None:
        """Store the keys and values of a prompt, [H_kv, T, d] each."""
        index = self.rows.index(row)
        for buffers, tensor in zip((self.keys, self.values), keys_values, strict=True):
            heads, length, size = tensor.shape
            if layer not in buffers:
                buffers[layer] = tensor.new_zeros(len(self.rows), heads, self._needed, size)
            buffers[layer][index, :, self.end - length : self.end] = tensor

    def drop(self, row: int) -> None:
        """Replace ``row`` by the last row.

        The place that becomes free is set to zero: it may become padding of another row, where NaN would spread.
        """
        index, last = self.rows.index(row), len(self.rows) - 1
        for tensor in (*self.keys.values(), *self.values.values()):
            if index != last:
                tensor[index] = tensor[last]
            tensor[last, :, self._starts[last] : self.end] = 0
        self.rows[index], self._starts[index] = self.rows[last], self._starts[last]
        self.rows.pop()
        self._starts.pop()
        self._mask = None

    def mask(self, query: Tensor) -> Tensor | None:
        """Return what is added to the scores, 0 or -inf at padding, [R, 1, 1, C]; ``None`` without padding."""
        if max(self._starts) == self.first_column:
            return None
        if self._mask is None or self._mask.dtype != query.dtype:
            columns = torch.arange(self._needed, device=query.device)
            is_padding = columns < torch.tensor(self._starts, device=query.device)[:, None]
            zeros = torch.zeros(is_padding.shape, dtype=query.dtype, device=query.device)
            self._mask = zeros.masked_fill(is_padding, float("-inf"))[:, None, None]
        return self._mask


class KVCache:
    """Keys and values of rows, layer by layer; the packed attention fills it."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []

    @property
    def rows(self) -> list[int]:
        """The rows in the cache, in the order in which :meth:`attend` requires them."""
        return [row for group in self._groups for row in group.rows]

    def add(self, sizes: Mapping[int, RowSize]) -> None:
        """Make room for rows; the forward passes over their prompts store the keys and values.

        Args:
            sizes: The size of each row, by its number.
        """
        joined: list[_Group] = []
        for row, size in sorted(sizes.items(), key=lambda item: -item[1].prompt):
            group = min(self._groups, key=lambda group: group.waste(size.prompt), default=None)
            if group is None or group.waste(size.prompt) > MAX_WASTE:
                group = _Group()
                self._groups.append(group)
            group.add(row, size)
            joined.append(group)
        for group in joined:
            group.fit()

    def prefill(self, layer: int, prompts: Sequence[tuple[Sequence[int], tuple[Tensor, Tensor]]]) -> None:
        """Store the keys and values of prompts.

        Args:
            layer: Index of the layer.
            prompts: For each prompt the rows that it belongs to, and its keys and values, [H_kv, T, d].
        """
        groups = {row: group for group in self._groups for row in group.rows}
        for rows, keys_values in prompts:
            for row in rows:
                groups[row].store(layer, row, keys_values)

    def extend(self) -> None:
        """Make room for one more token per row, before the forward pass that reads it."""
        for group in self._groups:
            group.end += 1

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
            count, end = len(group.rows), group.end
            first_column = max(group.first_column, end - window) if window else group.first_column
            group_rows = slice(start, start + count)
            group.keys[layer][:count, :, end - 1] = keys[group_rows]
            group.values[layer][:count, :, end - 1] = values[group_rows]
            mask = group.mask(query)
            outputs.append(
                functional.scaled_dot_product_attention(
                    queries[group_rows],
                    group.keys[layer][:count, :, first_column:end],
                    group.values[layer][:count, :, first_column:end],
                    attn_mask=None if mask is None else mask[..., first_column:end],
                    scale=scaling,
                )
            )
            start += count
        return torch.cat(outputs).reshape(1, -1, heads, size)

    def drop(self, rows: Sequence[int]) -> None:
        """Remove rows."""
        for row in rows:
            next(group for group in self._groups if row in group.rows).drop(row)
        self._groups = [group for group in self._groups if group.rows]
