"""A linear layer and its LoRA as one node of the autograd graph, for CPUs.

y = x·W + bias + (g ⊙ (x·Aᵀ))·B, where g is the gate of each token: what ``lora_reference`` defines. One node adds the
LoRA term to y in place, both here and in the gradient of x, and so makes fewer large tensors. Layers without LoRA
use the same node where oneDNN is faster than torch's own products.

M tokens, K levels, r rank.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from meetlm.controls.kernels.low_rank import FusedRouting, Router
from meetlm.controls.kernels.products import onednn_is_faster, product

LINEAR_LAYERS = (nn.Linear, Conv1D)
"""Layers that :func:`fused_linear` computes. Subclasses, such as quantised layers, may compute something else."""


def can_fuse(layer: nn.Module, x: Tensor) -> bool:
    """Whether :func:`fused_linear` may replace the forward method of ``layer`` for the input ``x``.

    It needs a plain layer on a CPU with weights in the dtype of ``x``, and no autocast.
    """
    return (
        type(layer) in LINEAR_LAYERS
        and x.device.type == "cpu"
        and layer.weight.dtype == x.dtype
        and not torch.is_autocast_enabled("cpu")
    )


def fused_linear(
    layer: nn.Module,
    x: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    routing: FusedRouting | None = None,
) -> Tensor:
    """Return the output [..., out] of a layer for x [..., in], with LoRA where its factors and a routing are passed.

    Args:
        layer: One of ``LINEAR_LAYERS``.
        x: Input.
        a: A, [K, r, in].
        b: B, [K, r, out].
        routing: Level weights of the tokens.
    """
    router = routing.router if routing else None
    y: Tensor = _FusedLinear.apply(  # type: ignore[no-untyped-call]
        x.flatten(0, -2), layer.weight, layer.bias, a, b, router, isinstance(layer, Conv1D)
    )
    return y.view(*x.shape[:-1], -1)


class _FusedLinear(torch.autograd.Function):
    """The arithmetic of :func:`fused_linear` over x [M, in], and its derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        router: Router | None,
        is_transposed: bool,
    ) -> Tensor:
        y = product(x, weight.T if is_transposed else weight, bias)
        low = None
        if router:
            assert a is not None and b is not None
            low = router.down(x, a)
            router.add_up(y, low, b)
        needs_x = ctx.needs_input_grad[1] or router is not None
        ctx.save_for_backward(x if needs_x else None, low, weight, a, b)
        ctx.router, ctx.is_transposed = router, is_transposed
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        router: Router | None = ctx.router
        dlow = router.down(dy, b) if router else None
        dx = dweight = dbias = da = db = None
        if ctx.needs_input_grad[0]:
            dx = product(dy, weight if ctx.is_transposed else weight.T)
            if router and dlow is not None:
                router.add_up(dx, dlow, a)
        if ctx.needs_input_grad[1]:
            dweight = product(x.T, dy.T) if ctx.is_transposed else product(dy.T, x.T)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(dim=0)
        if router and dlow is not None and ctx.needs_input_grad[3]:
            da = router.factor_gradient(dlow, x, a)
        if router and ctx.needs_input_grad[4]:
            db = router.factor_gradient(low, dy, b)
        return dx, dweight, dbias, da, db, None, None


def use_fast_products(model: PreTrainedModel) -> None:
    """Replace the forward methods of the plain linear layers of ``model`` where oneDNN is faster than torch's products.

    Layers whose forward method is already replaced, such as those with LoRA, stay as they are.
    """
    if model.device.type != "cpu" or not onednn_is_faster():
        return
    for layer in model.modules():
        if type(layer) in LINEAR_LAYERS and "forward" not in vars(layer):
            layer.forward = partial(_fast_forward, layer, layer.forward)


def _fast_forward(layer: nn.Module, original_forward: Any, x: Tensor) -> Tensor:
    y: Tensor = fused_linear(layer, x) if can_fuse(layer, x) else original_forward(x)
    return y
