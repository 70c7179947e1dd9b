"""Sampling of the next token. Each row has its own random stream, so its draws do not depend on other rows."""

from __future__ import annotations

import torch
from torch import Tensor

from meetlm.generation.settings import Sampling

_NUM_TOP_TOKENS = 256
"""Number of top tokens in which the nucleus is searched first, since sorting a whole vocabulary is expensive."""


def row_generator(seed: int, row: int) -> torch.Generator:
    """Return the random stream of a prompt, which does not depend on its batch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + row)


def sample_tokens(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> Tensor:
    """Return the next token of each row, [R].

    Args:
        logits: [R, V], f32.
        sampling: Temperature and nucleus.
        generators: One per row.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits / sampling.temperature).softmax(dim=-1)
    draws = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators]).to(logits.device)
    if sampling.top_p == 1:
        return _invert_cumulative(probabilities.double().cumsum(dim=-1), draws)
    top, tokens = probabilities.topk(min(_NUM_TOP_TOKENS, probabilities.shape[-1]), dim=-1)
    sampled = tokens.gather(-1, _sample_nucleus(top, draws, sampling.top_p)[:, None])[:, 0]
    is_wide = top.sum(dim=-1) < sampling.top_p
    if bool(is_wide.any()):  # the nucleus needs more than the top tokens: sort the whole rows
        top, tokens = probabilities[is_wide].sort(dim=-1, descending=True)
        sampled[is_wide] = tokens.gather(-1, _sample_nucleus(top, draws[is_wide], sampling.top_p)[:, None])[:, 0]
    return sampled


def _sample_nucleus(sorted_probabilities: Tensor, draws: Tensor, top_p: float) -> Tensor:
    """Return an index into each row of sorted probabilities, drawn from the fewest whose sum reaches ``top_p``."""
    cumulative = sorted_probabilities.double().cumsum(dim=-1)
    is_inside = cumulative - sorted_probabilities < top_p  # up to and including the token that reaches top_p
    return _invert_cumulative((sorted_probabilities * is_inside).double().cumsum(dim=-1), draws)


def _invert_cumulative(cumulative: Tensor, draws: Tensor) -> Tensor:
    """Return for each row the first index whose cumulative probability exceeds draw × total."""
    index = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]
    return index.clamp(max=cumulative.shape[-1] - 1)
