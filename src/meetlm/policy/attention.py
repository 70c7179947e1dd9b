"""Attention over packed sequences: each token sees the tokens before it in its own sequence, and those that it shares.

``meet_varlen`` is an attention for transformers' ``AttentionInterface``: with a packed layout it attends within each
sequence of a packed row; without one, it is ``sdpa``. There are three ways:

* in half precision on CUDA, flash attention's kernel for sequences of any length, which is part of torch;
* on CPUs, blocks of queries that attend to the keys up to the last of them, so that little is computed only to be
  masked. Queries that share a key head (grouped-query attention) are rows of one matrix, which makes larger products;
* elsewhere sequence by sequence, each with one call of ``sdpa``.

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
from meetlm.policy.packed_layout import PackedLayout, PromptKeys

VARLEN = "meet_varlen"
KERNEL_GROUPS_HEADS = "enable_gqa" in signature(varlen_attn).parameters
"""Whether the kernel supports several query heads per key head: from torch 2.12 on."""
HALF_DTYPES = (torch.bfloat16, torch.float16)
"""Dtypes that the kernel for sequences of any length supports."""


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
        query: [1, H, T, d]; key and value are [1, H_kv, T, d], and H is a multiple of H_kv.
        key: See ``query``.
        value: See ``query``.
        attention_mask: Used only where nothing is packed.
        dropout: Dropout of attention weights.
        scaling: Factor of the scores; 1/sqrt(d) by default.
        kwargs: ``meet_layout``, a :class:`~meetlm.policy.packed_layout.PackedLayout`, has the sequence positions.
            ``meet_prompt_keys`` stores the keys and values of prompts, or puts them before the row's own.
            ``meet_kv_cache`` stores the keys and values of each, for the rows in ``meet_rows``; without a layout, each
            token is the next one of a row of the cache. ``sliding_window`` is supported; the rest is for sdpa.

    Returns:
        [1, T, H, d], and ``None`` in the place of attention weights.
    """
    layout: PackedLayout | None = kwargs.get("meet_layout")
    cache: KVCache | None = kwargs.get("meet_kv_cache")
    window: int | None = kwargs.get("sliding_window")
    if layout is None and cache is not None:
        return cache.attend(_layer_index(module), query, key, value, scaling, window), None
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    device_type = query.device.type
    if torch.is_autocast_enabled(device_type):  # rotary positions are f32, which makes queries and keys f32 as well
        dtype = torch.get_autocast_dtype(device_type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    prompt_keys: PromptKeys | None = kwargs.get("meet_prompt_keys")
    if prompt_keys is not None:
        key, value = prompt_keys.extend(_layer_index(module), key, value)
    uses_kernel = not dropout and has_kernel(query, key, value)
    keys_values = [] if uses_kernel and cache is None else keys_and_values(key, value, layout)
    if cache is not None:
        prompts = [(sequence_key[0], sequence_value[0]) for sequence_key, sequence_value in keys_values]
        cache.prefill(_layer_index(module), list(zip(kwargs["meet_rows"], prompts, strict=True)))
    if uses_kernel:
        return attend_with_kernel(query, key, value, layout, window, scaling), None
    attend = attend_in_blocks if device_type == "cpu" else attend_by_sequence
    outputs = attend(query, keys_values, layout, window, {"dropout_p": dropout, "scale": scaling})
    return torch.cat(outputs, dim=1).view(1, query.shape[2], query.shape[1], -1), None


def has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether flash attention's kernel supports these: half precision on CUDA devices since the Ampere generation."""
    return (
        query.is_cuda
        and query.dtype in HALF_DTYPES
        and query.dtype == key.dtype == value.dtype
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def attend_with_kernel(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, window: int | None, scaling: float | None
) -> Tensor:
    """Return the attention output of all tokens, [1, T, H, d], with flash attention's kernel."""
    metadata = layout.metadata(query.device)
    repeat = query.shape[1] // key.shape[1]
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, d]
    if metadata.key_tokens is not None:
        keys, values = keys[metadata.key_tokens], values[metadata.key_tokens]
    if repeat > 1 and not KERNEL_GROUPS_HEADS:
        keys, values = keys.repeat_interleave(repeat, dim=1), values.repeat_interleave(repeat, dim=1)
    grouping: dict[str, Any] = {"enable_gqa": repeat > 1} if KERNEL_GROUPS_HEADS else {}
    output = varlen_attn(
        queries,
        keys,
        values,
        metadata.cu_seqlens_q,
        metadata.cu_seqlens_k,
        metadata.max_seqlen_q,
        metadata.max_seqlen_k,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        **grouping,
    )
    assert isinstance(output, Tensor)
    return output[None]


def keys_and_values(key: Tensor, value: Tensor, layout: PackedLayout) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values of each sequence, shared ones included, [1, H_kv, shared + length, d]."""
    # Slices would fill a whole tensor each in backward; a split does not.
    keys, values = torch.split(key, layout.segments, 2), torch.split(value, layout.segments, 2)
    sequences: list[tuple[Tensor, Tensor]] = []
    for index, (root, skip) in enumerate(zip(layout.roots, layout.shared, strict=True), layout.num_prompts):
        if skip:
            key, value = (torch.cat([parts[root][:, :, :skip], parts[index]], dim=2) for parts in (keys, values))
            sequences.append((key, value))
        else:
            sequences.append((keys[index], values[index]))
    return sequences


def attend_in_blocks(
    query: Tensor,
    keys_values: Sequence[tuple[Tensor, Tensor]],
    layout: PackedLayout,
    window: int | None,
    options: dict[str, Any],
) -> list[Tensor]:
    """Return the attention outputs of blocks of tokens, [1, tokens, H_kv, G, d] each."""
    kv_heads = keys_values[0][0].shape[1]
    repeat = query.shape[1] // kv_heads
    rows = query.view(1, kv_heads, repeat, *query.shape[2:]).transpose(2, 3).flatten(2, 3)  # [1, H_kv, T·G, d]
    blocks = iter(torch.split(rows, [repeat * size for sizes in layout.blocks for size in sizes], dim=2))
    outputs = []
    for (key, value), sizes in zip(keys_values, layout.blocks, strict=True):
        last = key.shape[2] - sum(sizes)
        for size in sizes:
            first, last = max(0, last + 1 - window) if window else 0, last + size
            block = next(blocks)
            mask = layout.block_mask(block, size, last - first, window)
            output = functional.scaled_dot_product_attention(
                block, key[:, :, first:last], value[:, :, first:last], attn_mask=mask, **options
            )
            outputs.append(output.view(1, kv_heads, size, repeat, -1).transpose(1, 2))
    return outputs


def attend_by_sequence(
    query: Tensor,
    keys_values: Sequence[tuple[Tensor, Tensor]],
    layout: PackedLayout,
    window: int | None,
    options: dict[str, Any],
) -> list[Tensor]:
    """Return the attention outputs of sequences, [1, length, H, d] each, without a mask where none is needed."""
    outputs = []
    for part, (key, value) in zip(torch.split(query, layout.lengths, dim=2), keys_values, strict=True):
        length, num_keys = part.shape[2], key.shape[2]
        mask = None
        if num_keys > length or (window is not None and length > window):
            mask = layout.sequence_mask(length, num_keys, window, query.device)
        output = functional.scaled_dot_product_attention(
            part,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=query.shape[1] != key.shape[1],
            **options,
        )
        outputs.append(output.transpose(1, 2))
    return outputs


def _layer_index(module: nn.Module) -> int:
    index = module.layer_idx
    assert isinstance(index, int), "an attention layer has an index"
    return index


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
