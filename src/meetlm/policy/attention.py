"""Attention over packed sequences: each token sees its own sequence's tokens before it, and those that it shares.

``meet_varlen`` is an attention for transformers' ``AttentionInterface``: with borders it attends within each sequence
of a packed row; without, it is ``sdpa``. On CPUs some queries attend at a time, to the keys up to the last of them, so
that little is computed only to be masked. The queries that share a key head (grouped-query attention) stand as rows of
one matrix, which makes the products larger.

T tokens, H heads, H_kv key heads, G = H / H_kv, d size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from meetlm.policy.past import Past

VARLEN = "meet_varlen"
BLOCK = 64
"""About how many tokens' queries attend at a time on CPUs (``bench/levers.py attention``)."""


class Masks:
    """What queries see, as numbers to add to scores: made once for all layers of a forward pass."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int, int | None], Tensor] = {}

    def of(self, query: Tensor, tokens: int, keys: int, longest: int, window: int | None) -> Tensor:
        """Return 0 where a query sees a key and -inf elsewhere, [tokens·G, keys].

        Args:
            query: [1, H_kv, tokens·G, d], G rows for each token.
            tokens: How many; the last of them stands where the last key does.
            keys: How many.
            longest: Most keys of a sequence of the pass, or any number above.
            window: Keys that a token sees, its own included; all before it where ``None``.
        """
        repeat = query.shape[2] // tokens
        kind = repeat, longest, window
        if kind not in self._made:
            row = torch.arange(2 * BLOCK, device=query.device)[:, None]
            behind = row - torch.arange(-longest, 2 * BLOCK, device=query.device)
            unseen = (behind < 0) | (behind >= (window or longest + 2 * BLOCK))
            mask = torch.zeros(unseen.shape, dtype=query.dtype, device=query.device).masked_fill(unseen, float("-inf"))
            self._made[kind] = mask.repeat_interleave(repeat, dim=0)
        end = longest + tokens
        return self._made[kind][: tokens * repeat, end - keys : end]


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend within each sequence of a packed row.

    Args:
        module: The attention layer.
        query: [1, H, T, d]; key and value [1, H_kv, T, d], H a multiple of H_kv.
        key: See ``query``.
        value: See ``query``.
        attention_mask: Used only where nothing is packed.
        dropout: On attention weights.
        scaling: Of the scores; 1/sqrt(d) by default.
        kwargs: ``meet_borders``, Q + 1 numbers, marks the sequences; ``meet_shared``, Q numbers, says how many tokens
            a branch shares with the last sequence that is none; ``meet_masks`` is :class:`Masks` of the pass.
            ``meet_past`` takes in the keys of each sequence, for the rows that ``meet_rows`` names; without borders
            each token is the next one of a row of it. ``sliding_window`` is obeyed; the rest is for sdpa.

    Returns:
        [1, T, H, d], and no weights.
    """
    borders: list[int] | None = kwargs.get("meet_borders")
    past: Past | None = kwargs.get("meet_past")
    window: int | None = kwargs.get("sliding_window")
    if past is not None and borders is None:
        return past.attend(_layer(module), query, key, value, scaling, window), None
    if borders is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    lengths = [end - start for start, end in pairwise(borders)]
    shared = kwargs.get("meet_shared") or [0] * len(lengths)
    whole = _whole_keys(key, value, lengths, shared)
    more = {"dropout_p": dropout, "scale": scaling}
    # A dry run stands for CUDA by autocast of the CPU (diagnostics/dry_run.py).
    if query.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        outputs = _in_blocks(query, whole, lengths, window, kwargs["meet_masks"], more)
    else:
        outputs = _at_once(query, whole, lengths, window, more)
    if past is not None:
        kept = [(k[0], v[0]) for k, v in whole]
        past.keep(_layer(module), list(zip(kwargs["meet_rows"], kept, strict=True)))
    return torch.cat(outputs, dim=1).view(1, query.shape[2], query.shape[1], -1), None


def _whole_keys(
    key: Tensor, value: Tensor, lengths: Sequence[int], shared: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values of each sequence, [1, H_kv, shared + length, d]."""
    found: list[tuple[Tensor, Tensor]] = []
    root = key, value
    # A slice's backward fills a whole tensor; that of a split does not.
    for skip, *own in zip(
        shared, torch.split(key, list(lengths), 2), torch.split(value, list(lengths), 2), strict=True
    ):
        if skip:
            k, v = (torch.cat([of_root[:, :, :skip], one], dim=2) for of_root, one in zip(root, own, strict=True))
        else:
            root = k, v = own[0], own[1]
        found.append((k, v))
    return found


def _in_blocks(
    query: Tensor,
    whole: Sequence[tuple[Tensor, Tensor]],
    lengths: Sequence[int],
    window: int | None,
    masks: Masks,
    more: dict[str, Any],
) -> list[Tensor]:
    """Return what some tokens at a time attend to, [1, tokens, H_kv, G, d]."""
    kv_heads = whole[0][0].shape[1]
    repeat = query.shape[1] // kv_heads
    longest = max(key.shape[2] for key, _ in whole)
    rows = query.view(1, kv_heads, repeat, *query.shape[2:]).transpose(2, 3).flatten(2, 3)  # [1, H_kv, T·G, d]
    blocks = [_sizes(length) for length in lengths]
    parts = iter(torch.split(rows, [repeat * size for sizes in blocks for size in sizes], dim=2))
    outputs = []
    for (key, value), sizes in zip(whole, blocks, strict=True):
        last = key.shape[2] - sum(sizes)
        for size in sizes:
            first, last = max(0, last + 1 - window) if window else 0, last + size
            part = next(parts)
            mask = masks.of(part, size, last - first, longest, window)
            output = functional.scaled_dot_product_attention(
                part, key[:, :, first:last], value[:, :, first:last], attn_mask=mask, **more
            )
            outputs.append(output.view(1, kv_heads, size, repeat, -1).transpose(1, 2))
    return outputs


def _sizes(length: int) -> list[int]:
    """Return the sizes of a sequence's blocks, about equal and below 2·BLOCK."""
    count = max(1, round(length / BLOCK))
    borders = [length * number // count for number in range(count + 1)]
    return [end - start for start, end in pairwise(borders)]


def _at_once(
    query: Tensor,
    whole: Sequence[tuple[Tensor, Tensor]],
    lengths: Sequence[int],
    window: int | None,
    more: dict[str, Any],
) -> list[Tensor]:
    """Return what each sequence's tokens attend to, [1, length, H, d]: one kernel, and no mask where it needs none."""
    outputs = []
    for part, (key, value) in zip(torch.split(query, list(lengths), dim=2), whole, strict=True):
        length, total = part.shape[2], key.shape[2]
        mask = None
        if total > length or (window is not None and length > window):
            position = torch.arange(total, device=query.device)
            distance = position[total - length :, None] - position[None, :]
            mask = (distance >= 0) & (distance < (window or total))
        output = functional.scaled_dot_product_attention(
            part,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=query.shape[1] != key.shape[1],
            **more,
        )
        outputs.append(output.transpose(1, 2))
    return outputs


def _layer(module: nn.Module) -> int:
    number = module.layer_idx
    assert isinstance(number, int), "an attention layer knows its number"
    return number


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
