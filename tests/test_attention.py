"""Attention within packed sequences, compared with the scores of all pairs of tokens in f64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from combinations import each_pair
from meetlm.data.batch import collate
from meetlm.policy import attention
from meetlm.policy.attention import varlen_attention
from meetlm.policy.packed_layout import BLOCK, PackedLayout
from tiny import LENGTHS, sequences, tiny_policy

HEADS, SIZE = 6, 16


class Layer(nn.Module):
    """The part of a layer that attention uses."""

    layer_idx = 0


def of_all_pairs(query: Tensor, key: Tensor, value: Tensor, shared: int, window: int | None, scale: float) -> Tensor:
    """Return the attention output [H, T, d] by one softmax over every key that a query sees."""
    key, value = (heads.repeat_interleave(len(query) // len(heads), dim=0) for heads in (key, value))
    scores = query @ key.transpose(1, 2) * scale
    place = torch.arange(key.shape[1], device=key.device)
    behind = place[shared:, None] - place
    seen = (behind >= 0) & (behind < (window or len(place)))
    return scores.masked_fill(~seen, -math.inf).softmax(dim=-1) @ value


def gap(values: Tensor, exact: Tensor) -> float:
    """Return the largest difference, relative to the largest number where that is above 1."""
    return float((values.double() - exact).detach().abs().max() / exact.detach().abs().max().clamp(min=1))


def kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """Compute what torch's documentation says about ``varlen_attn``, which needs CUDA.

    The last query of a sequence stands where its last key does; a query sees ``window_size[0]`` keys before its own.
    """
    left, right = window_size
    assert (right, cu_seq_q.dtype, enable_gqa) == (0, torch.int32, query.shape[1] != key.shape[1])
    assert (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max())) == (max_q, max_k)
    outputs = []
    for (start, end), (first, last) in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        visible = (states[first:last].transpose(0, 1) for states in (key, value))
        window = None if left < 0 else left + 1
        shared = last - first - (end - start)
        output = of_all_pairs(query[start:end].transpose(0, 1), *visible, shared, window, scale or SIZE**-0.5)
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs)


def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CPUs."""


def by_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices for which there is no kernel."""
    monkeypatch.setattr(attention, "attend_in_blocks", attention.attend_by_sequence)


def by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA."""
    monkeypatch.setattr(attention, "has_kernel", lambda *_: True)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "KERNEL_GROUPS_HEADS", True)


def by_older_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA with torch 2.11, whose kernel does not support groups of heads."""
    by_kernel(monkeypatch)
    monkeypatch.setattr(attention, "KERNEL_GROUPS_HEADS", False)


@each_pair(
    patch_attention=(blocks, by_sequence, by_kernel, by_older_kernel),
    kv_heads=(1, 2, 6),
    window=(None, 1, 40, BLOCK + 70),
    scale=(None, 0.3),
)
def test_attention_equals_the_softmax_over_visible_keys(
    patch_attention: Callable[[pytest.MonkeyPatch], None],
    kv_heads: int,
    window: int | None,
    scale: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sequences of one block, of several, and at the limits of a block; two are branches."""
    patch_attention(monkeypatch)
    compare(kv_heads, window, scale, "cpu", torch.float64, 1e-12)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_mixed_precision_uses_the_kernel(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions are f32 under autocast and would make queries and keys f32."""
    dtypes: list[torch.dtype] = []

    def counted(*args: Any, **more: Any) -> Tensor:
        dtypes.extend(tensor.dtype for tensor in args[:3])
        return kernel(*args, **more)

    monkeypatch.setattr(
        attention, "has_kernel", lambda *args: all(tensor.dtype in attention.HALF_DTYPES for tensor in args)
    )
    monkeypatch.setattr(attention, "varlen_attn", counted)
    policy = tiny_policy(architecture, "lora", dtype=torch.float32)
    batch = collate(sequences(policy, LENGTHS), "packed")
    assert policy(batch["blocks"], batch["num_completions"]).values.isfinite().all()
    assert dtypes == [], "f32 has no kernel"
    with torch.autocast("cpu", torch.bfloat16):
        values = policy(batch["blocks"], batch["num_completions"]).values
    assert dtypes == [torch.bfloat16] * 3 * policy.lm.config.get_text_config().num_hidden_layers
    values.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.control.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("window", [None, 1, 40, BLOCK + 70])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_kernel_itself(kv_heads: int, window: int | None, scale: float | None) -> None:
    compare(kv_heads, window, scale, "cuda", torch.bfloat16, 0.02)


def compare(
    kv_heads: int, window: int | None, scale: float | None, device: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Compare outputs and gradients with those of :func:`of_all_pairs`."""
    generator = torch.Generator().manual_seed(3)
    lengths = [1, 5, BLOCK + BLOCK // 2 - 1, BLOCK + BLOCK // 2, 2 * BLOCK, 3 * BLOCK + 5, 30, 2 * BLOCK]
    shared = [0, 0, 0, 0, 0, 0, 2 * BLOCK + 9, 7]
    total = sum(lengths)
    tensors = [
        torch.randn(1, heads, total, SIZE, dtype=torch.float64, generator=generator).to(device, dtype).requires_grad_()
        for heads in (HEADS, kv_heads, kv_heads)
    ]
    borders = torch.tensor([0, *lengths]).cumsum(0).tolist()
    outer = torch.randn(1, total, HEADS, SIZE, dtype=torch.float64, generator=generator).to(device, dtype)
    assert attention.has_kernel(*tensors) == (device == "cuda" or attention.varlen_attn is kernel)
    output, weights = varlen_attention(
        Layer(),
        *tensors,
        None,
        scaling=scale,
        meet_layout=PackedLayout(borders, shared),
        sliding_window=window,
    )
    assert weights is None
    gradients = torch.autograd.grad(output, tensors, outer)

    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected, root = [], (exact[1], exact[2])
    for start, length, skip in zip(borders, lengths, shared, strict=False):
        query, *key_value = (states[:, :, start : start + length] for states in exact)
        if skip:
            key_value = [
                torch.cat([of_root[:, :, :skip], states], dim=2)
                for of_root, states in zip(root, key_value, strict=True)
            ]
        else:
            root = key_value[0], key_value[1]
        expected.append(of_all_pairs(query[0], key_value[0][0], key_value[1][0], skip, window, scale or SIZE**-0.5))
    right = torch.cat(expected, dim=1).transpose(0, 1)[None]
    assert output.shape == right.shape
    assert gap(output, right) <= tolerance
    for gradient, other in zip(gradients, torch.autograd.grad(right, exact, outer.double()), strict=True):
        assert gap(gradient, other) <= tolerance


def test_masks_are_shared_by_all_layers() -> None:
    packed, query = PackedLayout([0, 100, 130], [0, 20]), torch.zeros(1, 2, 3 * 10, 8)
    first = packed.block_mask(query, 10, 20, None)
    assert first.shape == (30, 20)
    assert packed.block_mask(query, 10, 15, None).untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
    assert packed.block_mask(query, 10, 20, 4).untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
    # Ten keys are before the first query's own.
    assert first[0].isfinite().tolist() == [True] * 11 + [False] * 9
    assert first[2].equal(first[0]) and first[-1].isfinite().all()
