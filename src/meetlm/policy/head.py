"""Log-probs of tokens from the last hidden states, some rows of logits at a time.

Vocabularies are wide: the logits of a batch, their log-softmax and its gradient would be the largest tensors of a
step. Here they are made in chunks and dropped; what stays for backward is as large as the hidden states. The gradient
of log p(t) by its hidden state h is W_t − Σ_v p_v W_v, whatever the loss: it is found in forward, while the
probabilities are there. Only a head that is trained itself has its logits made again, in backward.

N tokens, D hidden, V words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from meetlm.controls.products import product

CHUNK = 256
"""Tokens whose logits live at a time."""


def token_logps(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """Return log p(target) of each token under softmax(head(h)), [N] f32, differentiable.

    Args:
        hidden: [N, D].
        head: A linear layer with a weight [V, D], and a bias [V] or none.
        targets: [N] int64.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    weight, bias = (None if one is None else one.to(dtype) for one in (head.weight, getattr(head, "bias", None)))
    with torch.autocast(kind, enabled=False):
        values: Tensor = _TokenLogps.apply(hidden.to(dtype), weight, bias, targets)  # type: ignore[no-untyped-call]
    return values


@torch.no_grad()
def is_plain(lm: PreTrainedModel, tolerance: float = 1e-4) -> bool:
    """Whether the logits of ``lm`` are its head's output for its last hidden states: some models cap or scale them.

    Args:
        lm: In eval mode.
        tolerance: Largest difference of a logit, relative to the largest one where that is above 1.
    """
    head = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    ids = torch.arange(8, device=lm.device)[None]
    if not isinstance(head, nn.Linear) or lm.base_model is lm:
        return False
    logits = lm(ids, use_cache=False).logits.float()
    own = head(lm.base_model(ids, use_cache=False).last_hidden_state).float()
    return own.shape == logits.shape and bool((own - logits).abs().max() <= tolerance * logits.abs().max().clamp(min=1))


class _TokenLogps(torch.autograd.Function):
    """The arithmetic of :func:`token_logps`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        values, normalizers = [], []
        for start in range(0, len(hidden), CHUNK):
            rows = slice(start, start + CHUNK)
            logits = product(hidden[rows], weight, bias).float()
            largest = logits.amax(dim=1, keepdim=True)
            of_target = logits.gather(1, targets[rows, None])
            weighs = logits.sub_(largest).exp_()  # probabilities times the row's total
            total = weighs.sum(dim=1, keepdim=True)
            normalizer = largest + total.log()
            values.append((of_target - normalizer)[:, 0])
            normalizers.append(normalizer[:, 0])
            if slopes is not None:
                expected = product(weighs.to(weight.dtype), weight.T) / total
                torch.sub(weight[targets[rows]], expected, out=slopes[rows])
        ctx.save_for_backward(hidden, weight, bias, targets, slopes, _joined(normalizers, hidden))
        return _joined(values, hidden)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, slopes, normalizers = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        dh = slopes * outer[:, None].to(slopes.dtype) if of_hidden else None
        dw = torch.empty_like(weight) if of_weight else None
        db = torch.empty_like(bias) if of_bias else None
        step = max(1, CHUNK * len(weight) // max(1, len(hidden)))  # words whose logits are as many as forward's
        for start in range(0, len(weight) if of_weight or of_bias else 0, step):
            words = slice(start, start + step)
            logits = product(hidden, weight[words], None if bias is None else bias[words]).float()
            gradient = logits.sub_(normalizers[:, None]).exp_().mul_(-outer[:, None])
            inside = (targets >= start) & (targets < start + len(gradient.T))
            gradient[inside, targets[inside] - start] += outer[inside]
            if dw is not None:
                dw[words] = product(gradient.to(weight.dtype).T, hidden.T)
            if db is not None:
                db[words] = gradient.sum(dim=0)
        return dh, dw, db, None


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts) if parts else like.new_empty(0, dtype=torch.float32)
