"""Log-probs of tokens from the last hidden states, computed in chunks of the vocabulary.

Vocabularies are large: the logits of a batch, their log-softmax and its gradient would be the largest tensors of a
step. Here the logits of a chunk are computed, added to the sums of the softmax (rescaled whenever a larger logit
appears: Milakov and Gimelshein, 2018) and dropped. The gradient of log p(t) with respect to its hidden state h is
W_t − Σ_v p_v W_v, whatever the loss: it is computed in forward, while the probabilities exist. Backward needs the
probabilities only where the head itself is trained: forward stores them, or backward recomputes them.

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
"""Approximate number of logits per chunk; larger chunks are hardly faster (LOG.md, 2026-11-26)."""
MIN_CHUNK = 1024
"""Minimum chunk of the vocabulary, however many tokens there are."""


class LogProbHead:
    """A linear LM head that can return log-probs of target tokens in place of all logits.

    It replaces the forward method of the head, so that the language model is always called as a whole. Sharding gathers
    weights around the forward pass of the model, and so gathers those of the head as well.

    Args:
        head: A linear layer with a weight [V, D], and a bias [V] or ``None``.
    """

    def __init__(self, head: nn.Module) -> None:
        self._head, self._original_forward = head, head.forward
        self._targets: Tensor | None = None
        self._stores_probabilities = True
        head.forward = self

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the log-probs [N, 1] of the targets, or all logits if no targets are set."""
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
        store_probabilities: Store the probabilities, N·V numbers, for the gradient of a trained ``head``, which saves
            one matrix product.
    """
    device_type = hidden.device.type
    has_autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if has_autocast else hidden.dtype
    chunks = _vocab_chunks(len(hidden), len(cast(Tensor, head.weight)), NUM_LOGITS[device_type])
    store_probabilities = store_probabilities and torch.is_grad_enabled()
    weight, bias = cast(Tensor, head.weight).to(dtype), cast(Tensor | None, getattr(head, "bias", None))
    with torch.autocast(device_type, enabled=False):
        logps: Tensor = _TokenLogps.apply(  # type: ignore[no-untyped-call]
            hidden.to(dtype), weight, None if bias is None else bias.to(dtype), targets, chunks, store_probabilities
        )
    return logps


@torch.no_grad()
def is_linear_head(lm: PreTrainedModel, tolerance: float = 1e-4) -> bool:
    """Return whether the logits of ``lm`` equal the output of its linear head; some models cap or scale them.

    Args:
        lm: A model in eval mode.
        tolerance: Maximum difference between logits, relative to the largest logit or to 1, whichever is larger.
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
        sum_exp = hidden.new_zeros(len(hidden), 1, dtype=torch.float32)
        target_logits, max_logit = torch.zeros_like(sum_exp), torch.full_like(sum_exp, torch.finfo(torch.float32).min)
        expected_weight = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        store_probabilities = store_probabilities and any(ctx.needs_input_grad[1:3])
        stored: list[Tensor] = []
        for chunk in chunks:
            logits = _logits(hidden, weight, bias, chunk)
            index, is_inside = _index_in_chunk(targets, chunk)
            target_logits += logits.gather(1, index).where(is_inside, 0.0)
            previous, max_logit = max_logit, torch.maximum(max_logit, logits.amax(dim=1, keepdim=True))
            rescale = (previous - max_logit).exp_()
            exp_logits = logits.sub_(max_logit).exp_()  # unnormalized probabilities
            sum_exp.mul_(rescale).add_(exp_logits.sum(dim=1, keepdim=True))
            exp_logits = exp_logits.to(weight.dtype)
            if expected_weight is not None:
                expected_weight.mul_(rescale).add_(product(exp_logits, weight[chunk].T))
            if store_probabilities:
                stored += (exp_logits, max_logit)
            del logits, exp_logits  # before the next chunk is computed
        normalizer = max_logit + sum_exp.log()
        logp_gradient = None
        if expected_weight is not None:
            logp_gradient = expected_weight.div_(sum_exp).neg_().add_(weight[targets]).to(hidden.dtype)
        ctx.chunks = chunks
        ctx.save_for_backward(hidden, weight, bias, targets, logp_gradient, normalizer, *stored)
        return (target_logits - normalizer)[:, 0]

    @staticmethod
    def backward(ctx: Any, dlogps: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, logp_gradient, normalizer, *stored = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dlogps = dlogps[:, None]
        dhidden = logp_gradient * dlogps.to(logp_gradient.dtype) if needs_hidden else None
        dweight = torch.empty_like(weight) if needs_weight else None
        dbias = torch.empty_like(bias) if needs_bias else None
        for position, chunk in enumerate(ctx.chunks if needs_weight or needs_bias else ()):
            if stored:
                exp_logits, max_logit = stored[2 * position : 2 * position + 2]
                dlogits = exp_logits.float() * ((max_logit - normalizer).exp_() * -dlogps)
            else:
                dlogits = _logits(hidden, weight, bias, chunk).sub_(normalizer).exp_().mul_(-dlogps)
            index, is_inside = _index_in_chunk(targets, chunk)
            dlogits.scatter_add_(1, index, dlogps * is_inside)
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


def _vocab_chunks(num_tokens: int, vocab_size: int, max_logits: int) -> list[slice]:
    """Return the chunks of the vocabulary, of about equal sizes."""
    largest_chunk = max(MIN_CHUNK, max_logits // max(1, num_tokens))
    return even_parts(vocab_size, -(-vocab_size // largest_chunk))
