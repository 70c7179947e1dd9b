"""Keys and values of rows of differing lengths, so that no row pays for the longest.

Rows stand right-aligned in groups of like length: a step's new keys all go into one column of a group, and attention
reads what the group's longest row needs. A row that leaves is replaced by its group's last one: one row is copied.

Shapes: R rows, H_kv heads of size d, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

MAX_WASTE = 0.2
"""Highest share of a group's prompt tokens that are padding: more groups read less and are more calls."""


@dataclass(slots=True)
class _Group:
    """Rows of like length.

    Attributes:
        rows: Their numbers; their places in the buffers are in this order.
        width: Tokens of the longest prompt.
        mask: [R, 1, 1, width + new] f32, -inf where a row is padding; ``None`` where none is.
        keys: By layer, [R, H_kv, width + new, d].
        values: As ``keys``.
    """

    rows: list[int]
    width: int
    mask: Tensor | None
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def drop(self, row: int) -> None:
        """Let the last row take the place of ``row``."""
        place, last = self.rows.index(row), len(self.rows) - 1
        if place != last:
            for kept in (*self.keys.values(), *self.values.values(), *([] if self.mask is None else [self.mask])):
                kept[place] = kept[last]
            self.rows[place] = self.rows[last]
        self.rows.pop()


class KVCache:
    """What the rows of a batch have read, layer by layer; filled by the packed attention.

    Args:
        lengths: Of the prompts, [R].
        new_tokens: Most that any row gains.
        device: Of the model.
    """

    def __init__(self, lengths: Sequence[int], new_tokens: int, device: torch.device) -> None:
        self._lengths, self._new, self._gained = list(lengths), new_tokens, 0
        self._groups = [self._group(rows, device) for rows in _like(self._lengths)]

    @property
    def rows(self) -> list[int]:
        """The rows that are left, in the order in which :meth:`attend` takes them."""
        return [row for group in self._groups for row in group.rows]

    def keep(self, layer: int, prompts: Sequence[tuple[Sequence[int], tuple[Tensor, Tensor]]]) -> None:
        """Take the keys and values of prompts.

        Args:
            layer: Its number.
            prompts: For each the rows it is the prompt of, and its keys and values, [H_kv, T, d].
        """
        places = {row: (group, place) for group in self._groups for place, row in enumerate(group.rows)}
        for rows, parts in prompts:
            for group, place in (places[row] for row in rows):
                for buffers, part in zip((group.keys, group.values), parts, strict=True):
                    heads, length, size = part.shape
                    if layer not in buffers:
                        buffers[layer] = part.new_zeros(len(group.rows), heads, group.width + self._new, size)
                    buffers[layer][place, :, group.width - length : group.width] = part

    def advance(self) -> None:
        """Make room for one more token of each row: before the forward pass that reads it."""
        self._gained += 1

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """Return what each row's newest token attends to, [1, R, H, d].

        Args:
            layer: Its number.
            query: [1, H, R, d], the rows in the order of :attr:`rows`; H is a multiple of H_kv.
            key: [1, H_kv, R, d]; taken in.
            value: As ``key``.
            scaling: Of the scores.
            window: Tokens that are seen, the newest included.
        """
        _, heads, _, size = query.shape
        kv_heads = key.shape[1]
        # The queries that share a key head stand where tokens would: nothing is repeated.
        queries = query[0].view(kv_heads, heads // kv_heads, -1, size).permute(2, 0, 1, 3)
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        outputs, start = [], 0
        for group in self._groups:
            if not group.rows:
                continue
            count = len(group.rows)
            end = group.width + self._gained
            first = max(0, end - window) if window else 0
            own = slice(start, start + count)
            for buffer, new in ((group.keys[layer], keys), (group.values[layer], values)):
                buffer[:count, :, end - 1] = new[own]
            outputs.append(
                functional.scaled_dot_product_attention(
                    queries[own],
                    group.keys[layer][:count, :, first:end],
                    group.values[layer][:count, :, first:end],
                    attn_mask=None if group.mask is None else group.mask[:count, :, :, first:end].to(query.dtype),
                    scale=scaling,
                )
            )
            start += count
        return torch.cat(outputs).reshape(1, -1, heads, size)

    def drop(self, rows: Sequence[int]) -> None:
        """Let rows leave."""
        for row in rows:
            next(group for group in self._groups if row in group.rows).drop(row)

    def _group(self, rows: list[int], device: torch.device) -> _Group:
        lengths = [self._lengths[row] for row in rows]
        width = max(lengths)
        mask = None
        if min(lengths) < width:
            columns = torch.arange(width + self._new, device=device)
            padding = columns < width - torch.tensor(lengths, device=device)[:, None]
            mask = torch.zeros(padding.shape, device=device).masked_fill(padding, float("-inf"))[:, None, None]
        return _Group(rows, width, mask)


def _like(lengths: Sequence[int]) -> list[list[int]]:
    """Return the rows in groups of like length, the longest first."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        group = groups[-1] if groups else []
        real = sum(lengths[other] for other in group) + lengths[row]
        if group and 1 - real / (lengths[group[0]] * (len(group) + 1)) <= MAX_WASTE:
            group.append(row)
        else:
            groups.append([row])
    return groups
