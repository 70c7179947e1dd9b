"""Packed sequences in a forward pass of any architecture, and the check that packing does not change logits.

Not every architecture uses transformers' ``AttentionInterface``, and some implement their own attention windows, so
:func:`try_packed_attention` compares logits before packing is used.

T tokens, Q sequences, V vocabulary size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from meetlm.policy.attention import VARLEN
from meetlm.policy.gpt_neo import GPTNeoAttention
from meetlm.policy.kv_cache import KVCache
from meetlm.policy.packed_layout import PackedLayout

BF16_TOLERANCE = 5e-2
"""Largest relative difference of a logit in bf16."""


class InterfaceAttention:
    """The attention of a model that uses transformers' ``AttentionInterface``.

    Args:
        lm: The model.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        self._lm = lm

    @property
    def name(self) -> str:
        """The name of the current attention in transformers."""
        return str(self._lm.config._attn_implementation)

    def failure_reason(self) -> str | None:
        """Return why the attention cannot be replaced; ``None`` if it can."""
        if not getattr(self._lm, "_supports_attention_backend", False):
            return f"{type(self._lm).__name__} does not use transformers' AttentionInterface"
        if self.name not in ("sdpa", VARLEN):
            return f"its attention is {self.name!r}; packing requires 'sdpa'"
        return None

    def switch(self, name: str) -> None:
        """Switch to the attention ``name``."""
        self._lm.set_attn_implementation(name)

    def arguments(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the model's forward pass that carry ``values`` to its layers.

        An unused 4-D mask prevents transformers from building a dense mask.
        """
        return {**values, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._lm.device)}


def _attention_of(lm: PreTrainedModel) -> InterfaceAttention | GPTNeoAttention:
    return GPTNeoAttention(lm) if GPTNeoAttention.matches(lm) else InterfaceAttention(lm)


def packed_arguments(lm: PreTrainedModel, layout: PackedLayout, **more: Any) -> dict[str, Any]:
    """Return the arguments of a packed forward pass of ``lm``, in addition to ids and positions.

    Args:
        lm: The model, with packed attention.
        layout: The sequences of the row.
        more: Further arguments of :func:`~meetlm.policy.attention.varlen_attention`.
    """
    return _attention_of(lm).arguments({"meet_layout": layout, **more})


def decoding_arguments(lm: PreTrainedModel, cache: KVCache) -> dict[str, Any]:
    """Return the arguments of a decoding step with ``cache``, in addition to ids and positions."""
    return _attention_of(lm).arguments({"meet_kv_cache": cache})


def attention_failure_reason(lm: PreTrainedModel) -> str | None:
    """Return why the attention of ``lm`` cannot be replaced, judged by its class; ``None`` if it can."""
    return _attention_of(lm).failure_reason()


@torch.no_grad()
def try_packed_attention(lm: PreTrainedModel, longest: int = 512, tolerance: float = 1e-4) -> str | None:
    """Switch ``lm`` to packed attention if packed logits equal the logits of sequences computed alone.

    Args:
        lm: A model in eval mode. It keeps packed attention if no logit differs, else its original attention.
        longest: Tokens of the longest sequence to check; attention windows must be shorter to be noticed.
        tolerance: Largest difference of a logit in f32, relative to the largest logit if that is above 1.

    Returns:
        Why ``lm`` cannot be packed; ``None`` if it now has packed attention.
    """
    attention = _attention_of(lm)
    reason = attention.failure_reason()
    if reason:
        return reason
    original_attention = attention.name
    longest = min(longest, getattr(lm.config, "max_position_embeddings", longest))
    lengths = [min(7, longest), longest, longest, min(5, longest)]
    generator = torch.Generator().manual_seed(0)
    table = lm.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    rows = [torch.randint(0, table.shape[0], (1, n), generator=generator).to(lm.device) for n in lengths]
    half = longest // 2
    rows[2][:, :half] = rows[1][:, :half]  # the first half can be shared
    shared = [0, 0, half, 0]
    expected = _logits_one_by_one(lm, rows)
    attention.switch(VARLEN)
    reason = _difference(lm, rows, shared, expected, tolerance)
    if reason is None and lm.device.type == "cuda":  # on CUDA, training runs under autocast with another kernel
        with torch.autocast("cuda", torch.bfloat16):
            reason = _difference(lm, rows, shared, expected, BF16_TOLERANCE)
            if reason is not None:  # the difference may come from bf16 alone: compare within bf16
                attention.switch(original_attention)
                expected = _logits_one_by_one(lm, rows)
                attention.switch(VARLEN)
                reason = _difference(lm, rows, shared, expected, BF16_TOLERANCE)
    if reason is not None:
        attention.switch(original_attention)
    return reason


def _logits_one_by_one(lm: PreTrainedModel, rows: list[Tensor]) -> list[Tensor]:
    """Return the last logits [V] of each sequence, computed alone."""
    return [lm(row, use_cache=False, logits_to_keep=1).logits[0, -1].float() for row in rows]


def _difference(
    lm: PreTrainedModel, rows: list[Tensor], shared: list[int], expected: list[Tensor], tolerance: float
) -> str | None:
    """Return how packed logits differ from the expected ones; ``None`` if all are within ``tolerance``."""
    try:
        packed = _packed_logits(lm, rows, shared)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{VARLEN} failed: {error}"
    differences = [
        float((packed_row - expected_row).abs().max() / expected_row.abs().max().clamp(min=1))
        for expected_row, packed_row in zip(expected, packed, strict=True)
    ]
    worst = max(range(len(rows)), key=lambda n: math.inf if math.isnan(differences[n]) else differences[n])
    if differences[worst] <= tolerance:
        return None
    tokens = rows[worst].shape[1]
    difference = f"{differences[worst]:.2g} (bound {tolerance:g})"
    return f"packed logits of {tokens} tokens differ from unpacked logits by {difference}"


def _packed_logits(lm: PreTrainedModel, rows: list[Tensor], shared: list[int]) -> Tensor:
    """Return the last logits [Q, V] of sequences packed into one row.

    Args:
        lm: The model.
        rows: Ids [1, T] of each sequence.
        shared: For each sequence, the number of leading tokens reused from the most recent unshared sequence.
    """
    spans = [(skip, row.shape[1]) for skip, row in zip(shared, rows, strict=True)]
    borders = torch.tensor([0, *(end - start for start, end in spans)], device=lm.device).cumsum(0).to(torch.int32)
    packed: Tensor = lm(
        torch.cat([row[:, skip:] for skip, row in zip(shared, rows, strict=True)], dim=1),
        position_ids=torch.cat([torch.arange(start, end, device=lm.device) for start, end in spans])[None],
        use_cache=False,
        logits_to_keep=(borders[1:] - 1).long(),
        **packed_arguments(lm, PackedLayout(borders.tolist(), shared)),
    ).logits[0]
    return packed.float()
