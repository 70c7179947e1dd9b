"""Log-probs of tokens from the last hidden states, some words of the vocabulary at a time.

Vocabularies are wide: the logits of a batch, their log-softmax and its gradient would be the largest tensors of a
step. Here the logits of some words are made, added to the sums of the softmax (rescaled as a larger logit comes:
Milakov and Gimelshein, 2018) and dropped. The gradient of log p(t) by its hidden state h is W_t − Σ_v p_v W_v, whatever
the loss: it is found in forward, while the probabilities are there. Only a head that is trained itself needs them in
backward: they are kept, or their logits are made again.

N tokens, D hidden, V words.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from meetlm.controls.products import product

ROOM = {"cpu": 2**22, "cuda": 2**25}
"""About how many logits live at a time; more are hardly faster (LOG.md, 2026-11-26)."""
LEAST = 1024
"""Words at a time where there are so many tokens that there would be room for fewer."""


def token_logps(hidden: Tensor, head: nn.Module, targets: Tensor, *, keep: bool = True) -> Tensor:
    """Return log p(target) of each token under softmax(head(h)), [N] f32, differentiable.

    Args:
        hidden: [N, D].
        head: A linear layer with a weight [V, D], and a bias [V] or none.
        targets: [N] int64.
        keep: Keep the probabilities for the gradient of ``head``, N·V numbers, where it is trained: a product less.
    """
    kind = hidden.device.type
    mixed = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if mixed else hidden.dtype
    blocks = _blocks(len(hidden), len(cast(Tensor, head.weight)), ROOM[kind])
    keep = keep and torch.is_grad_enabled()
    weight, bias = (None if one is None else one.to(dtype) for one in (head.weight, getattr(head, "bias", None)))
    with torch.autocast(kind, enabled=False):
        values: Tensor = _TokenLogps.apply(  # type: ignore[no-untyped-call]
            hidden.to(dtype), weight, bias, targets, blocks, keep
        )
    return values


@torch.no_grad()
def is_linear_head(lm: PreTrainedModel, tolerance: float = 1e-4) -> bool:
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
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        blocks: list[slice],
        keep: bool,
    ) -> Tensor:
        total = hidden.new_zeros(len(hidden), 1, dtype=torch.float32)
        of_target, largest = torch.zeros_like(total), torch.full_like(total, torch.finfo(torch.float32).min)
        expected = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        keep = keep and any(ctx.needs_input_grad[1:3])
        kept: list[Tensor] = []
        for words in blocks:
            logits = _logits(hidden, weight, bias, words)
            place, inside = _places(targets, words)
            of_target += logits.gather(1, place).where(inside, 0.0)
            before, largest = largest, torch.maximum(largest, logits.amax(dim=1, keepdim=True))
            shrinks = (before - largest).exp_()
            weighs = logits.sub_(largest).exp_()  # probabilities times the row's total, as far as it is known
            total.mul_(shrinks).add_(weighs.sum(dim=1, keepdim=True))
            weighs = weighs.to(weight.dtype)
            if expected is not None:
                expected.mul_(shrinks).add_(product(weighs, weight[words].T))
            if keep:
                kept += (weighs, largest)
            del logits, weighs  # before the next ones are made
        normalizer = largest + total.log()
        slopes = None
        if expected is not None:
            slopes = expected.div_(total).neg_().add_(weight[targets]).to(hidden.dtype)
        ctx.blocks = blocks
        ctx.save_for_backward(hidden, weight, bias, targets, slopes, normalizer, *kept)
        return (of_target - normalizer)[:, 0]

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, slopes, normalizer, *kept = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        outer = outer[:, None]
        dh = slopes * outer.to(slopes.dtype) if of_hidden else None
        dw = torch.empty_like(weight) if of_weight else None
        db = torch.empty_like(bias) if of_bias else None
        for number, words in enumerate(ctx.blocks if of_weight or of_bias else ()):
            if kept:
                weighs, largest = kept[2 * number : 2 * number + 2]
                gradient = weighs.float() * ((largest - normalizer).exp_() * -outer)
            else:
                gradient = _logits(hidden, weight, bias, words).sub_(normalizer).exp_().mul_(-outer)
            place, inside = _places(targets, words)
            gradient.scatter_add_(1, place, outer * inside)
            if dw is not None:
                dw[words] = product(gradient.to(weight.dtype).T, hidden.T)
            if db is not None:
                db[words] = gradient.sum(dim=0)
            del gradient
        return dh, dw, db, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, words: slice) -> Tensor:
    """Return logits [N, words] f32."""
    return product(hidden, weight[words], None if bias is None else bias[words]).float()


def _places(targets: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Return where among ``words`` each target stands, and whether it is one of them, both [N, 1]."""
    place = targets[:, None] - words.start
    most = words.stop - words.start - 1
    return place.clamp(0, most), (place >= 0) & (place <= most)


def _blocks(tokens: int, words: int, room: int) -> list[slice]:
    """Return the words that are gone through at a time, about equal numbers."""
    count = -(-words // max(LEAST, room // max(1, tokens)))
    borders = [words * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(borders)]
