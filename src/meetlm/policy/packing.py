"""Packed sequences in a forward pass of any architecture, and the check that they may be used.

They need :mod:`~meetlm.policy.attention`. Not every architecture goes through transformers' ``AttentionInterface``
(:mod:`~meetlm.policy.gpt_neo` is for one that does not), and some have windows of their own, so
:func:`packing_failure_reason` compares logits before a model is packed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from meetlm.policy import gpt_neo
from meetlm.policy.attention import VARLEN
from meetlm.policy.kv_cache import KVCache
from meetlm.policy.packed_layout import PackedLayout

HALF_TOLERANCE = 5e-2
"""Largest relative difference of a logit in bf16."""


def packed_arguments(
    lm: PreTrainedModel, cu_seq_lens: Tensor, shared: list[int] | None = None, **more: Any
) -> dict[str, Any]:
    """Return what a packed forward of ``lm`` passes beside ids and positions; ``more`` is for its attention."""
    return _told(lm, meet_packed=PackedLayout(cu_seq_lens.tolist(), shared), **more)


def step_arguments(lm: PreTrainedModel, past: KVCache) -> dict[str, Any]:
    """Return what a forward of ``lm`` over the next token of each row of ``past`` passes beside ids and positions."""
    return _told(lm, meet_past=past)


def replace_attention(lm: PreTrainedModel, attention: str = VARLEN) -> None:
    """Switch ``lm`` to packed attention, or to another by name."""
    if not gpt_neo.is_gpt_neo(lm):
        lm.set_attn_implementation(attention)
    elif attention == VARLEN:
        gpt_neo.replace_attention(lm)
    else:
        gpt_neo.restore_attention(lm)


def _told(lm: PreTrainedModel, **told: Any) -> dict[str, Any]:
    if gpt_neo.is_gpt_neo(lm):
        return {"attention_mask": gpt_neo.telling(lm, told)}
    return {**told, "attention_mask": _nothing(lm)}


def _nothing(lm: PreTrainedModel) -> Tensor:
    """Return a 4-D mask that nothing looks at: it keeps transformers from building a dense one."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=lm.device)


def attention_failure_reason(lm: PreTrainedModel) -> str | None:
    """Return why the attention of ``lm`` cannot be replaced, as far as its class says; ``None`` where it can."""
    if gpt_neo.is_gpt_neo(lm):
        return None
    if not getattr(lm, "_supports_attention_backend", False):
        return f"{type(lm).__name__} does not go through transformers' AttentionInterface"
    own = lm.config._attn_implementation
    return None if own in ("sdpa", VARLEN) else f"its own attention is {own!r}, and packing is written for 'sdpa'"


@torch.no_grad()
def packing_failure_reason(lm: PreTrainedModel, longest: int = 512, tolerance: float = 1e-4) -> str | None:
    """Switch ``lm`` to packed attention if packed logits equal those of sequences one by one.

    Args:
        lm: In eval mode. Left with the packed attention on success, with its own otherwise.
        longest: Tokens of the longest sequence to check (a window shorter than this shows).
        tolerance: Largest difference of a logit, for f32, relative to the largest logit where that is above 1.

    Returns:
        ``None`` if it packs, else why not.
    """
    obstacle = attention_failure_reason(lm)
    if obstacle:
        return obstacle
    own = VARLEN if gpt_neo.is_gpt_neo(lm) and gpt_neo.is_replaced(lm) else lm.config._attn_implementation
    longest = min(longest, getattr(lm.config, "max_position_embeddings", longest))
    lengths = [min(7, longest), longest, longest, min(5, longest)]
    generator = torch.Generator().manual_seed(0)
    table = lm.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    rows = [torch.randint(0, table.shape[0], (1, n), generator=generator).to(lm.device) for n in lengths]
    half = longest // 2
    rows[2][:, :half] = rows[1][:, :half]  # half of it can be shared
    shared = [0, 0, half, 0]
    alone = _alone(lm, rows)
    replace_attention(lm)
    why = _difference(lm, rows, shared, alone, tolerance)
    if why is None and lm.device.type == "cuda":  # what training there runs in has a kernel of its own
        with torch.autocast("cuda", torch.bfloat16):
            why = _difference(lm, rows, shared, alone, HALF_TOLERANCE)
            if why is not None:  # of a model that turns on a rounding, packing may do what bf16 does alone
                replace_attention(lm, own)
                alone = _alone(lm, rows)
                replace_attention(lm)
                why = _difference(lm, rows, shared, alone, HALF_TOLERANCE)
    if why is not None:
        replace_attention(lm, own)
    return why


def _alone(lm: PreTrainedModel, rows: list[Tensor]) -> list[Tensor]:
    """Return the last logits [V] of each sequence by itself."""
    return [lm(row, use_cache=False, logits_to_keep=1).logits[0, -1].float() for row in rows]


def _difference(
    lm: PreTrainedModel, rows: list[Tensor], shared: list[int], alone: list[Tensor], bound: float
) -> str | None:
    """Return how logits of packed sequences differ from those alone; ``None`` where all are within ``bound``."""
    try:
        packed = _last_logits(lm, rows, shared)
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{VARLEN} failed: {error}"
    gaps = [
        float((one - row).abs().max() / one.abs().max().clamp(min=1)) for one, row in zip(alone, packed, strict=True)
    ]
    worst = max(range(len(gaps)), key=lambda n: gaps[n] if gaps[n] == gaps[n] else float("inf"))
    if gaps[worst] <= bound:
        return None
    tokens = rows[worst].shape[1]
    return f"packed logits of {tokens} tokens differ from those alone by {gaps[worst]:.2g} (bound {bound:g})"


def _last_logits(lm: PreTrainedModel, rows: list[Tensor], shared: list[int]) -> Tensor:
    """Return the last logits [Q, V] of sequences packed into one row.

    Args:
        lm: The model.
        rows: Ids [1, T] of each.
        shared: How many of its first tokens each takes from the last row that shares none.
    """
    starts = [(skip, row.shape[1]) for skip, row in zip(shared, rows, strict=True)]
    borders = torch.tensor([0, *(end - start for start, end in starts)], device=lm.device).cumsum(0).to(torch.int32)
    packed: Tensor = lm(
        torch.cat([row[:, skip:] for skip, row in zip(shared, rows, strict=True)], dim=1),
        position_ids=torch.cat([torch.arange(start, end, device=lm.device) for start, end in starts])[None],
        use_cache=False,
        logits_to_keep=(borders[1:] - 1).long(),
        **packed_arguments(lm, borders, shared),
    ).logits[0]
    return packed.float()
