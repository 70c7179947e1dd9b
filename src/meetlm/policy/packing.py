"""Packed sequences in a forward pass of any architecture, and the check that they may be used.

They need :mod:`~meetlm.policy.attention`; on CUDA flash attention is tried first. Not every architecture goes through
transformers' ``AttentionInterface``, and some have windows of their own, so :func:`packs_exactly` compares logits
before a model is packed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from meetlm.policy.attention import VARLEN, Masks
from meetlm.policy.past import Past

FLASH_TOLERANCE = 5e-2
"""Largest relative difference of a logit between bf16 flash attention and f32."""


def packed_arguments(lm: PreTrainedModel, cu_seq_lens: Tensor, shared: list[int] | None = None) -> dict[str, Any]:
    """Return what a packed forward of ``lm`` passes beside ids and positions.

    Flash attention wants ``cu_seq_lens`` and no mask.
    """
    borders = cu_seq_lens.tolist()
    if lm.config._attn_implementation == VARLEN:
        masks = {"meet_masks": Masks(), "attention_mask": _nothing(lm)}
        return {"meet_borders": borders, "meet_shared": shared, **masks}
    assert shared is None, "flash attention knows no branches"
    longest = max(end - start for start, end in pairwise(borders))
    lengths = {"cu_seq_lens_q": cu_seq_lens, "cu_seq_lens_k": cu_seq_lens}
    return {**lengths, "max_length_q": longest, "max_length_k": longest, "attention_mask": None}


def step_arguments(lm: PreTrainedModel, past: Past) -> dict[str, Any]:
    """Return what a forward of ``lm`` over the next token of each row of ``past`` passes beside ids and positions."""
    return {"meet_past": past, "attention_mask": _nothing(lm)}


def _nothing(lm: PreTrainedModel) -> Tensor:
    """Return a 4-D mask that nothing looks at: it keeps transformers from building a dense one."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=lm.device)


@torch.no_grad()
def packs_exactly(lm: PreTrainedModel, longest: int = 512, tolerance: float = 1e-4) -> str | None:
    """Switch ``lm`` to packed attention if packed logits equal those of sequences one by one.

    Args:
        lm: In eval mode. Left with the packed attention on success, with its own otherwise.
        longest: Tokens of the longest sequence to check (a window shorter than this shows).
        tolerance: Largest difference of a logit, for f32, relative to the largest logit where that is above 1.

    Returns:
        ``None`` if it packs, else why not.
    """
    if not getattr(lm, "_supports_attention_backend", False):
        return f"{type(lm).__name__} does not go through transformers' AttentionInterface"
    own = lm.config._attn_implementation
    if own not in ("sdpa", VARLEN):
        return f"its own attention is {own!r}, and packing is written for 'sdpa'"
    longest = min(longest, getattr(lm.config, "max_position_embeddings", longest))
    lengths = [min(7, longest), longest, longest, min(5, longest)]
    generator = torch.Generator().manual_seed(0)
    table = lm.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    rows = [torch.randint(0, table.shape[0], (1, n), generator=generator).to(lm.device) for n in lengths]
    half = longest // 2
    rows[2][:, :half] = rows[1][:, :half]  # half of it can be shared
    alone = [lm(row, use_cache=False, logits_to_keep=1).logits[0, -1].float() for row in rows]
    flash = lm.device.type == "cuda" and is_flash_attn_2_available()
    why = None
    for attention in (["flash_attention_2"] if flash else []) + [VARLEN]:
        try:
            lm.set_attn_implementation(attention)
            packed = _last_logits(lm, rows, [0, 0, half if attention == VARLEN else 0, 0])
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            why = f"{attention} failed: {error}"
            continue
        bound = tolerance if attention == VARLEN else FLASH_TOLERANCE
        gaps = [
            float((one - row).abs().max() / one.abs().max().clamp(min=1))
            for one, row in zip(alone, packed, strict=True)
        ]
        worst = max(range(len(gaps)), key=lambda n: gaps[n] if gaps[n] == gaps[n] else float("inf"))
        if gaps[worst] <= bound:
            return None
        why = f"packed logits of {lengths[worst]} tokens differ from those alone by {gaps[worst]:.2g} (bound {bound:g})"
    lm.set_attn_implementation(own)
    return why


def _last_logits(lm: PreTrainedModel, rows: list[Tensor], shared: list[int]) -> Tensor:
    """Return the last logits [Q, V] of sequences packed into one row.

    Args:
        lm: The model.
        rows: Ids [1, T] of each.
        shared: How many of its first tokens each takes from the last row that shares none.
    """
    starts = [(skip, row.shape[1]) for skip, row in zip(shared, rows, strict=True)]
    borders = torch.tensor([0, *(end - start for start, end in starts)], device=lm.device).cumsum(0).to(torch.int32)
    branches = any(shared)
    with torch.autocast("cuda", torch.bfloat16, enabled=lm.config._attn_implementation != VARLEN):
        packed: Tensor = lm(
            torch.cat([row[:, skip:] for skip, row in zip(shared, rows, strict=True)], dim=1),
            position_ids=torch.cat([torch.arange(start, end, device=lm.device) for start, end in starts])[None],
            use_cache=False,
            logits_to_keep=(borders[1:] - 1).long(),
            **packed_arguments(lm, borders, shared if branches else None),
        ).logits[0]
    return packed.float()
