"""Attention within packed sequences, beside scores of all pairs of tokens in f64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meetlm.policy import attention
from meetlm.policy.attention import BLOCK, Masks, varlen_attention

HEADS, SIZE = 6, 16


class Layer(nn.Module):
    """All that attention asks of its layer."""

    layer_idx = 0


def at_once(query: Tensor, *given: Any) -> list[Tensor]:
    """As on other devices."""
    whole, lengths, window, _, more = given
    return attention._at_once(query, whole, lengths, window, more)


def of_all_pairs(query: Tensor, key: Tensor, value: Tensor, shared: int, window: int | None, scale: float) -> Tensor:
    """[H, T, d]: one softmax over every key that a query sees."""
    key, value = (one.repeat_interleave(len(query) // len(one), dim=0) for one in (key, value))
    scores = query @ key.transpose(1, 2) * scale
    place = torch.arange(key.shape[1])
    behind = place[shared:, None] - place
    seen = (behind >= 0) & (behind < (window or len(place)))
    return scores.masked_fill(~seen, -math.inf).softmax(dim=-1) @ value


@pytest.mark.parametrize("cpu", [True, False], ids=["blocks", "at once"])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("window", [None, 1, 40, BLOCK + 70])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_tokens_see_what_they_should(
    cpu: bool, kv_heads: int, window: int | None, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences of one block, at its edges and of several, and two branches of one of them."""
    if not cpu:
        monkeypatch.setattr(attention, "_in_blocks", at_once)
    generator = torch.Generator().manual_seed(3)
    lengths = [1, 5, BLOCK + BLOCK // 2 - 1, BLOCK + BLOCK // 2, 2 * BLOCK, 3 * BLOCK + 5, 30, 2 * BLOCK]
    shared = [0, 0, 0, 0, 0, 0, 2 * BLOCK + 9, 7]
    total = sum(lengths)
    tensors = [
        torch.randn(1, heads, total, SIZE, dtype=torch.float64, generator=generator, requires_grad=True)
        for heads in (HEADS, kv_heads, kv_heads)
    ]
    borders = torch.tensor([0, *lengths]).cumsum(0).tolist()
    outer = torch.randn(1, total, HEADS, SIZE, dtype=torch.float64, generator=generator)
    found, weights = varlen_attention(
        Layer(),
        *tensors,
        None,
        scaling=scale,
        meet_borders=borders,
        meet_shared=shared,
        meet_masks=Masks(),
        sliding_window=window,
    )
    assert weights is None
    gradients = torch.autograd.grad(found, tensors, outer)

    expected, root = [], (tensors[1], tensors[2])
    for start, length, skip in zip(borders, lengths, shared, strict=False):
        query, *own = (one[:, :, start : start + length] for one in tensors)
        if skip:
            own = [torch.cat([of_root[:, :, :skip], one], dim=2) for of_root, one in zip(root, own, strict=True)]
        else:
            root = own[0], own[1]
        expected.append(of_all_pairs(query[0], own[0][0], own[1][0], skip, window, scale or SIZE**-0.5))
    right = torch.cat(expected, dim=1).transpose(0, 1)[None]
    assert found.shape == right.shape
    assert torch.allclose(found, right, atol=1e-12)
    for one, other in zip(gradients, torch.autograd.grad(right, tensors, outer), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_masks_are_made_once_for_all_layers() -> None:
    masks, query = Masks(), torch.zeros(1, 2, 3 * 10, 8)
    first = masks.of(query, 10, 20, 100, None)
    assert first.shape == (30, 20)
    assert masks.of(query, 10, 15, 100, None).untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
    assert masks.of(query, 10, 20, 100, 4).untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
    # Ten keys are before the first query's own.
    assert first[0].isfinite().tolist() == [True] * 11 + [False] * 9
    assert first[2].equal(first[0]) and first[-1].isfinite().all()
