"""Attention over packed sequences: each token sees its own sequence's tokens before it, and those that it shares.

``meet_varlen`` is an attention for transformers' ``AttentionInterface``: with borders it attends within each sequence
of a packed row; without, it is ``sdpa``. There are three ways:

* in half precision on CUDA, flash attention's kernel for sequences of any length, which comes with torch;
* on CPUs, some queries at a time to the keys up to the last of them, so that little is computed only to be masked. The
  queries that share a key head (grouped-query attention) stand as rows of one matrix, which makes products larger;
* else sequence by sequence, each by one call of ``sdpa``.

T tokens, H heads, H_kv key heads, G = H / H_kv, d size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from meetlm.policy.kv_cache import KVCache
from meetlm.policy.packed_layout import PackedLayout

VARLEN = "meet_varlen"
GROUPS = "enable_gqa" in signature(varlen_attn).parameters
"""Whether the kernel can be told that several query heads have one key head: from torch 2.12 on."""
HALVES = (torch.bfloat16, torch.float16)
"""What a kernel for sequences of any length computes in."""


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
        kwargs: ``meet_packed``, a :class:`~meetlm.policy.packed_layout.PackedLayout`, lists the packed
            sequences. ``meet_past`` takes in the keys of each, for the rows that ``meet_rows`` names; where nothing is
            packed, each token is the next one of a row of it. ``sliding_window`` is obeyed; the rest is for sdpa.

    Returns:
        [1, T, H, d], and no weights.
    """
    packed: PackedLayout | None = kwargs.get("meet_packed")
    past: KVCache | None = kwargs.get("meet_past")
    window: int | None = kwargs.get("sliding_window")
    if packed is None and past is not None:
        return past.attend(_layer(module), query, key, value, scaling, window), None
    if packed is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    kind = query.device.type
    mixed = torch.is_autocast_enabled(kind)
    if mixed:  # rotary positions are f32, and made queries and keys f32 as well
        query, key, value = (one.to(torch.get_autocast_dtype(kind)) for one in (query, key, value))
    kernel = not dropout and has_kernel(query, key, value)
    whole = [] if kernel and past is None else whole_keys(key, value, packed)
    if past is not None:
        kept = [(k[0], v[0]) for k, v in whole]
        past.keep(_layer(module), list(zip(kwargs["meet_rows"], kept, strict=True)))
    if kernel:
        return by_kernel(query, key, value, packed, window, scaling), None
    way = in_blocks if kind == "cpu" else at_once
    outputs = way(query, whole, packed, window, {"dropout_p": dropout, "scale": scaling})
    return torch.cat(outputs, dim=1).view(1, query.shape[2], query.shape[1], -1), None


def has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether flash attention's kernel takes these: half precision on CUDA of the Ampere generation or a later one."""
    return (
        query.is_cuda
        and query.dtype in HALVES
        and query.dtype == key.dtype == value.dtype
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def by_kernel(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedLayout, window: int | None, scaling: float | None
) -> Tensor:
    """Return what all tokens attend to, [1, T, H, d]."""
    places = packed.places(query.device)
    repeat = query.shape[1] // key.shape[1]
    queries, keys, values = (one[0].transpose(0, 1) for one in (query, key, value))  # [T, heads, d]
    if places.gathered is not None:
        keys, values = keys[places.gathered], values[places.gathered]
    if repeat > 1 and not GROUPS:
        keys, values = (one.repeat_interleave(repeat, dim=1) for one in (keys, values))
    told: dict[str, Any] = {"enable_gqa": repeat > 1} if GROUPS else {}
    output = varlen_attn(
        queries,
        keys,
        values,
        places.queries,
        places.keys,
        places.longest_queries,
        places.longest_keys,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        **told,
    )
    assert isinstance(output, Tensor)
    return output[None]


def whole_keys(key: Tensor, value: Tensor, packed: PackedLayout) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values of each sequence, [1, H_kv, shared + length, d]."""
    found: list[tuple[Tensor, Tensor]] = []
    root = key, value
    # A slice's backward fills a whole tensor; that of a split does not.
    own_keys, own_values = torch.split(key, packed.lengths, 2), torch.split(value, packed.lengths, 2)
    for skip, *own in zip(packed.shared, own_keys, own_values, strict=True):
        if skip:
            k, v = (torch.cat([of_root[:, :, :skip], one], dim=2) for of_root, one in zip(root, own, strict=True))
        else:
            root = k, v = own[0], own[1]
        found.append((k, v))
    return found


def in_blocks(
    query: Tensor,
    whole: Sequence[tuple[Tensor, Tensor]],
    packed: PackedLayout,
    window: int | None,
    more: dict[str, Any],
) -> list[Tensor]:
    """Return what some tokens at a time attend to, [1, tokens, H_kv, G, d]."""
    kv_heads = whole[0][0].shape[1]
    repeat = query.shape[1] // kv_heads
    rows = query.view(1, kv_heads, repeat, *query.shape[2:]).transpose(2, 3).flatten(2, 3)  # [1, H_kv, T·G, d]
    parts = iter(torch.split(rows, [repeat * size for sizes in packed.blocks for size in sizes], dim=2))
    outputs = []
    for (key, value), sizes in zip(whole, packed.blocks, strict=True):
        last = key.shape[2] - sum(sizes)
        for size in sizes:
            first, last = max(0, last + 1 - window) if window else 0, last + size
            part = next(parts)
            mask = packed.mask(part, size, last - first, window)
            output = functional.scaled_dot_product_attention(
                part, key[:, :, first:last], value[:, :, first:last], attn_mask=mask, **more
            )
            outputs.append(output.view(1, kv_heads, size, repeat, -1).transpose(1, 2))
    return outputs


def at_once(
    query: Tensor,
    whole: Sequence[tuple[Tensor, Tensor]],
    packed: PackedLayout,
    window: int | None,
    more: dict[str, Any],
) -> list[Tensor]:
    """Return what each sequence's tokens attend to, [1, length, H, d]: one kernel, and no mask where it needs none."""
    outputs = []
    for part, (key, value) in zip(torch.split(query, packed.lengths, dim=2), whole, strict=True):
        length, total = part.shape[2], key.shape[2]
        mask = None
        if total > length or (window is not None and length > window):
            mask = packed.seen(length, total, window, query.device)
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
