"""Log-probs of tokens from the last hidden states, computed for a chunk of the vocabulary at a time.

Vocabularies are large: the logits of a batch, their log-softmax and its gradient would be the largest tensors of a
step. Here the logits of a chunk are computed, added to the sums of the softmax (rescaled whenever a larger logit
appears: Milakov and Gimelshein, 2018) and dropped. The gradient of log p(t) with respect to its hidden state h is
W_t − Σ_v p_v W_v, whatever the loss: it is computed in forward, while the probabilities exist. Only a head that is
trained itself needs them in backward: they are stored, or their logits are computed again.

N tokens, D size of the hidden states, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from meetlm.controls.kernels.products import product
from meetlm.policy.even_parts import even_parts

NUM_LOGITS = {"cpu": 2**22, "cuda": 2**25}
"""About how many logits exist at a time; more are hardly faster (LOG.md, 2026-11-26)."""
MIN_CHUNK = 1024
"""Smallest chunk of the vocabulary, where so many tokens would leave room for fewer."""


class LogProbHead:
    """A linear LM head that can return log-probs of target tokens in place of all logits.

    It replaces the forward method of the head. So the language model is always called as a whole, and whatever
    gathers weights around its forward pass, such as sharding, sees the head as well.

    Args:
        head: A linear layer with a weight [V, D], and a bias [V] or ``None``.
    """

    def __init__(self, head: nn.Module) -> None:
        self._head, self._original_forward = head, head.forward
        self._targets: Tensor | None = None
        self._stores_probabilities = True
        head.forward = self

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the log-probs [N, 1] of the targets, or all logits where there are no targets."""
        if self._targets is None:
            logits: Tensor = self._original_forward(hidden)
            return logits
        return token_logps(hidden, self._head, self._targets, store_probabilities=self._stores_probabilities)[:, None]

    @contextmanager
    def predicting(self, targets: Tensor, *, store_probabilities: bool) -> Iterator[None]:
        """Return log-probs of ``targets`` [N] inside this context; see :func:`token_logps`."""
        self._targets, self._stores_probabilities = targets, store_probabilities
        try:
            yield
        finally:
            self._targets = None


def token_logps(hidden: Tensor, head: nn.Module, targets: Tensor, *, store_probabilities: bool = True) -> Tensor:
    """Return log p(target) of each token under softmax(head(h)), in nats, [N] f32, differentiable.

    Args:
        hidden: [N, D].
        head: A linear layer with a weight [V, D], and a bias [V] or ``None``.
        targets: [N] int64.
        store_probabilities: Store the probabilities, N·V numbers, for the gradient of ``head`` where it is trained:
            saves one matrix product.
    """
    device_type = hidden.device.type
    has_autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if has_autocast else hidden.dtype
    chunks = _vocab_chunks(len(hidden), len(cast(Tensor, head.weight)), NUM_LOGITS[device_type])
    store_probabilities = store_probabilities and torch.is_grad_enabled()
    weight, bias = cast(Tensor, head.weight).to(dtype), cast(Tensor | None, getattr(head, "bias", None))
    with torch.autocast(device_type, enabled=False):
        values: Tensor = _TokenLogps.apply(  # type: ignore[no-untyped-call]
            hidden.to(dtype), weight, None if bias is None else bias.to(dtype), targets, chunks, store_probabilities
        )
    return values


@torch.no_grad()
def is_linear_head(lm: PreTrainedModel, tolerance: float = 1e-4) -> bool:
    """Return whether the logits of ``lm`` are its linear head's output; some models cap or scale them.

    Args:
        lm: A model in eval mode.
        tolerance: Largest difference of a logit, relative to the largest one where that is above 1.
    """
    head = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    ids = torch.arange(8, device=lm.device)[None]
    if not isinstance(head, nn.Linear) or lm.base_model is lm:
        return False
    logits = lm(ids, use_cache=False).logits.float()
    linear = head(lm.base_model(ids, use_cache=False).last_hidden_state).float()
    bound = tolerance * logits.abs().max().clamp(min=1)
    return linear.shape == logits.shape and bool((linear - logits).abs().max() <= bound)


class _TokenLogps(torch.autograd.Function):
    """The arithmetic of :func:`token_logps`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunks: list[slice],
        store_probabilities: bool,
    ) -> Tensor:
        total = hidden.new_zeros(len(hidden), 1, dtype=torch.float32)
        target_logits, largest = torch.zeros_like(total), torch.full_like(total, torch.finfo(torch.float32).min)
        expected_weight = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        store_probabilities = store_probabilities and any(ctx.needs_input_grad[1:3])
        stored: list[Tensor] = []
        for chunk in chunks:
            logits = _logits(hidden, weight, bias, chunk)
            index, is_inside = _index_in_chunk(targets, chunk)
            target_logits += logits.gather(1, index).where(is_inside, 0.0)
            previous, largest = largest, torch.maximum(largest, logits.amax(dim=1, keepdim=True))
            rescale = (previous - largest).exp_()
            terms = logits.sub_(largest).exp_()  # probabilities times the total, as far as it is known
            total.mul_(rescale).add_(terms.sum(dim=1, keepdim=True))
            terms = terms.to(weight.dtype)
            if expected_weight is not None:
                expected_weight.mul_(rescale).add_(product(terms, weight[chunk].T))
            if store_probabilities:
                stored += (terms, largest)
            del logits, terms  # before the next chunk is computed
        normalizer = largest + total.log()
        slopes = None
        if expected_weight is not None:
            slopes = expected_weight.div_(total).neg_().add_(weight[targets]).to(hidden.dtype)
        ctx.chunks = chunks
        ctx.save_for_backward(hidden, weight, bias, targets, slopes, normalizer, *stored)
        return (target_logits - normalizer)[:, 0]

    @staticmethod
    def backward(ctx: Any, dvalues: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, slopes, normalizer, *stored = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dvalues = dvalues[:, None]
        dhidden = slopes * dvalues.to(slopes.dtype) if needs_hidden else None
        dweight = torch.empty_like(weight) if needs_weight else None
        dbias = torch.empty_like(bias) if needs_bias else None
        for number, chunk in enumerate(ctx.chunks if needs_weight or needs_bias else ()):
            if stored:
                terms, largest = stored[2 * number : 2 * number + 2]
                dlogits = terms.float() * ((largest - normalizer).exp_() * -dvalues)
            else:
                dlogits = _logits(hidden, weight, bias, chunk).sub_(normalizer).exp_().mul_(-dvalues)
            index, is_inside = _index_in_chunk(targets, chunk)
            dlogits.scatter_add_(1, index, dvalues * is_inside)
            if dweight is not None:
                dweight[chunk] = product(dlogits.to(weight.dtype).T, hidden.T)
            if dbias is not None:
                dbias[chunk] = dlogits.sum(dim=0)
            del dlogits
        return dhidden, dweight, dbias, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk: slice) -> Tensor:
    """Return the logits of a chunk of the vocabulary, [N, chunk] f32."""
    return product(hidden, weight[chunk], None if bias is None else bias[chunk]).float()


def _index_in_chunk(targets: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
    """Return the index of each target in the chunk, and whether it is in the chunk, both [N, 1]."""
    index = targets[:, None] - chunk.start
    last = chunk.stop - chunk.start - 1
    return index.clamp(0, last), (index >= 0) & (index <= last)


def _vocab_chunks(num_tokens: int, vocab_size: int, room: int) -> list[slice]:
    """Return the chunks of the vocabulary, of about equal sizes."""
    largest_chunk = max(MIN_CHUNK, room // max(1, num_tokens))
    return even_parts(vocab_size, -(-vocab_size // largest_chunk))
