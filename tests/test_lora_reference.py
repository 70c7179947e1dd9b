"""LoRA: the reference defines the arithmetic, and the fused path for CPUs computes the same."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from meetlm.controls.kernels import low_rank
from meetlm.controls.kernels.fused_linear import can_fuse, fused_linear
from meetlm.controls.kernels.low_rank import FusedRouting
from meetlm.controls.lora_reference import LevelRouting, lora_forward
from tiny import tiny_policy

IN, OUT, LEVELS, RANK = 5, 7, 3, 2
SCALE = 4.0


def linear_layer(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layer = Conv1D(OUT, IN) if kind == "Conv1D" else nn.Linear(IN, OUT, bias=kind == "Linear with bias")
    return layer.to(dtype)


def factors(dtype: torch.dtype = torch.float64) -> tuple[nn.Parameter, nn.Parameter]:
    a, b = torch.randn(LEVELS, RANK, IN, dtype=dtype), torch.randn(LEVELS, RANK, OUT, dtype=dtype)
    return nn.Parameter(a), nn.Parameter(b)


def level_weights(mixed: bool) -> Tensor:
    """Return the level weights of 2 rows of 40 tokens: a mix per token, or one level per row."""
    if mixed:
        return SCALE * torch.randn(2, 40, LEVELS, dtype=torch.float64)
    return SCALE * torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)[:, None].expand(2, 40, -1)


def outputs_and_gradients(forward: Any, x: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return the output of ``forward`` and the gradients of its input and of ``parameters``."""
    x = x.clone().requires_grad_()
    y = forward(x)
    outer = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], outer)]


def test_the_reference_by_hand() -> None:
    """One token at a time, one level at a time: W·x + s·Σ_k w_k·B_kᵀ·A_k·x."""
    layer, (a, b) = linear_layer("Linear with bias"), factors()
    weights, x = level_weights(mixed=True), torch.randn(2, 40, IN, dtype=torch.float64)
    y = lora_forward(layer, x, a, b, LevelRouting(weights, RANK))
    for row, token in ((0, 0), (0, 39), (1, 17)):
        update = sum(weights[row, token, k] * b[k].T @ a[k] @ x[row, token] for k in range(LEVELS))
        assert torch.allclose(y[row, token], layer(x[row, token]) + update)


@pytest.mark.parametrize(
    ("kind", "mixed", "max_dense_rows"),
    [("Linear", True, 128), ("Linear with bias", False, 1), ("Conv1D", True, 128), ("Conv1D", False, 1)],
)
@pytest.mark.parametrize("trained", [False, True], ids=["frozen layer", "trained layer"])
def test_the_fused_path_equals_the_reference(
    kind: str, mixed: bool, max_dense_rows: int, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_rank, "MAX_DENSE_ROWS", max_dense_rows)
    layer, (a, b) = linear_layer(kind).requires_grad_(trained), factors()
    x, weights = torch.randn(2, 40, IN, dtype=torch.float64), level_weights(mixed)
    routing = FusedRouting(weights, RANK)
    assert isinstance(routing.router, low_rank.DenseRouting) == (max_dense_rows == 128)
    parameters = [a, b, *(layer.parameters() if trained else ())]
    assert can_fuse(layer, x)
    fused = outputs_and_gradients(lambda x: fused_linear(layer, x, a, b, routing), x, parameters)
    reference = outputs_and_gradients(lambda x: lora_forward(layer, x, a, b, routing), x, parameters)
    for tensor, expected in zip(fused, reference, strict=True):
        assert torch.allclose(tensor, expected)


def test_other_layers_take_the_reference() -> None:
    """Quantised layers are subclasses or other classes; half precision and autocast have other dtypes than f32 LoRA."""

    class Quantised(nn.Linear):
        pass

    x = torch.randn(3, IN)
    assert can_fuse(linear_layer("Linear", torch.float32), x)
    assert not can_fuse(Quantised(IN, OUT), x)
    assert not can_fuse(linear_layer("Linear", torch.bfloat16), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_fuse(linear_layer("Linear", torch.float32), x)


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 weights", "autocast"])
def test_the_reference_in_half_precision(autocast: bool) -> None:
    """LoRA's factors are f32; the output has the dtype of the layer's own output."""
    layer, (a, b) = linear_layer("Linear", torch.float32), factors(torch.float32)
    routing = LevelRouting(level_weights(mixed=True).float(), RANK)
    x = torch.randn(2, 40, IN)
    exact = lora_forward(layer, x, a, b, routing)
    layer = layer.to(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = lora_forward(layer, x if autocast else x.bfloat16(), a, b, routing)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert a.grad is not None and b.grad is not None and a.grad.dtype == torch.float32
    assert torch.allclose(y.float(), exact, atol=0.03 * float(exact.detach().abs().max()))


def test_a_policy_without_the_fused_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs: the same log-probs and gradients."""
    from meetlm.controls import lora
    from meetlm.data.batch import collate
    from tiny import LENGTHS, gap, gradients, sequences

    results = []
    for architecture, fused in product(("gpt2", "llama"), (True, False)):
        if not fused:
            monkeypatch.setattr(lora, "can_fuse", lambda *_: False)
        policy = tiny_policy(architecture, "lora")
        batch = collate(sequences(policy, LENGTHS), policy.layout)
        values = policy(batch["blocks"], batch["num_completions"])
        values.sums().sum().backward()
        results.append((values.values.detach(), gradients(policy)))
        monkeypatch.undo()
    for (fused_values, fused_gradients), (values, right) in zip(results[::2], results[1::2], strict=True):
        assert torch.allclose(fused_values, values, atol=1e-6)
        assert gap(right, fused_gradients) < 1e-6
